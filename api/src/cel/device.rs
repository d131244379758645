//! The expressions that select devices (`spec.selectors[].cel.expression` of device classes and requests).

use super::bounds::Bounds;
use super::{Env, Program, Type, declared};

/// What a selector may cost. Upstream's `CELSelectorExpressionMaxCost`.
const LIMIT: u64 = 1_000_000;

/// What is wrong with a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFault {
    /// It can't be compiled, or is no judgement.
    Invalid(String),
    /// It could be compiled, but can't be run.
    Internal(String),
    /// It may cost too much.
    TooComplex,
}

/// Compiles a selector.
///
/// # Errors
///
/// What is wrong with it, in upstream's words.
pub fn selector(source: &str) -> Result<Program, SelectorFault> {
    let domains = |values: Type| Type::map(Type::String, Type::map(Type::String, values));
    let fields = [
        ("driver", Type::String),
        ("allowMultipleAllocations", Type::Bool),
        ("attributes", domains(Type::Any)),
        ("capacity", domains(Type::Opaque("kubernetes.Quantity"))),
    ];
    let env = Env { binds: true, ..Env::default().with("device", Type::object("kubernetes.DRADevice", fields)) };
    let program = Program::build(&env, source).map_err(|why| {
        if why.starts_with("compilation") { SelectorFault::Invalid(why) } else { SelectorFault::Internal(why) }
    })?;
    if !matches!(program.type_, Type::Bool | Type::Any) {
        let found = declared(&program.type_);
        return Err(SelectorFault::Invalid(format!("must evaluate to bool or the unknown type, not {found}")));
    }
    if program.most(&Bounds::of_device()) > LIMIT {
        return Err(SelectorFault::TooComplex);
    }
    Ok(program)
}
