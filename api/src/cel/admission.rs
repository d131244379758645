//! Expressions that judge requests: match conditions of webhooks, and admission policies. What they may use, what is
//! wrong with them when they are written, and what they say of a request.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{
    AUTHORIZER, Activation, Authorizer, BUDGET, CONDITIONS_BUDGET, Check, Env, ObjectType, Opaque, Program, Query, RESOURCE_CHECK, Type, Val,
};
use crate::field::Error;
use crate::names;
use crate::value::{at, items, text};

fn request_type() -> Type {
    let gvk = |name: &str, last: &str| Type::object(name, [("group", Type::String), ("version", Type::String), (last, Type::String)]);
    let (kind, resource) = (gvk("kubernetes.GroupVersionKind", "kind"), gvk("kubernetes.GroupVersionResource", "resource"));
    let texts = || Type::list(Type::String);
    let user = [("username", Type::String), ("uid", Type::String), ("groups", texts()), ("extra", Type::map(Type::String, texts()))];
    let fields = [
        ("kind", kind.clone()),
        ("resource", resource.clone()),
        ("subResource", Type::String),
        ("requestKind", kind),
        ("requestResource", resource),
        ("requestSubResource", Type::String),
        ("name", Type::String),
        ("namespace", Type::String),
        ("operation", Type::String),
        ("userInfo", Type::object("kubernetes.UserInfo", user)),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ];
    Type::object("kubernetes.AdmissionRequest", fields)
}

fn namespace_type() -> Type {
    let (texts, labels) = (|| Type::list(Type::String), || Type::map(Type::String, Type::String));
    let condition = [("status", Type::String), ("type", Type::String), ("lastTransitionTime", Type::Timestamp), ("message", Type::String), ("reason", Type::String)];
    let condition = Type::object("kubernetes.NamespaceCondition", condition);
    let metadata = [
        ("name", Type::String),
        ("generateName", Type::String),
        ("namespace", Type::String),
        ("labels", labels()),
        ("annotations", labels()),
        ("UID", Type::String),
        ("creationTimestamp", Type::Timestamp),
        ("deletionGracePeriodSeconds", Type::Int),
        ("deletionTimestamp", Type::Timestamp),
        ("generation", Type::Int),
        ("resourceVersion", Type::String),
        ("finalizers", texts()),
    ];
    let status = [("conditions", Type::list(condition)), ("phase", Type::String)];
    let fields = [
        ("metadata", Type::object("kubernetes.NamespaceMetadata", metadata)),
        ("spec", Type::object("kubernetes.NamespaceSpec", [("finalizers", texts())])),
        ("status", Type::object("kubernetes.NamespaceStatus", status)),
    ];
    Type::object("kubernetes.Namespace", fields)
}

/// What an expression may use, with parameters and an authorizer or without.
fn env(params: bool, authorizer: bool, variables: &[(String, Type)]) -> Env {
    typed_env(&Type::Dyn, params.then_some(&Type::Dyn), authorizer, variables)
}

/// The same where the types of the object and the parameters are known.
fn typed_env(object: &Type, params: Option<&Type>, authorizer: bool, variables: &[(String, Type)]) -> Env {
    let env = Env::default().with("object", object.clone()).with("oldObject", object.clone()).with("request", request_type());
    let mut env = env.with("namespaceObject", namespace_type());
    if let Some(params) = params {
        env = env.with("params", params.clone());
    }
    if authorizer {
        env = env.with("authorizer", AUTHORIZER).with("authorizer.requestResource", RESOURCE_CHECK);
    }
    if !variables.is_empty() {
        let fields: BTreeMap<String, (String, Type)> = variables.iter().map(|(n, t)| (n.clone(), (n.clone(), t.clone()))).collect();
        env = env.with("variables", Type::Object(Arc::new(ObjectType { name: "kubernetes.variables".into(), fields, open: false })));
    }
    env
}

/// An expression with its source; one that didn't compile fails when it is evaluated.
#[derive(Debug)]
pub struct Expression {
    source: String,
    program: Result<Program, String>,
}

/// Compiles expressions, and keeps what is wrong with them.
struct Compiler {
    errors: Vec<Error>,
}

impl Compiler {
    fn expression(&mut self, env: &Env, source: &str, path: String, types: &[Type]) -> Expression {
        let program = if source.trim().is_empty() {
            // Of those that have a list of their own, upstream says more.
            let detail = match path.rsplit('.').next() {
                _ if path.contains("matchConditions") || path.contains("mutations") => String::new(),
                field => format!("{} is not specified", field.unwrap_or("")),
            };
            self.errors.push(Error::required(path, detail));
            Err("expression is empty".to_owned())
        } else {
            Program::compile_to(env, source, types).inspect_err(|why| self.errors.push(Error::invalid(path, source, why.as_str())))
        };
        Expression { source: source.to_owned(), program }
    }

    fn conditions(&mut self, env: &Env, list: &[Value], path: &str) -> Conditions {
        let mut seen: Vec<&str> = Vec::new();
        let conditions = list.iter().enumerate().map(|(i, condition)| {
            let path = format!("{path}[{i}]");
            let expression = self.expression(env, text(condition, &["expression"]), format!("{path}.expression"), &[Type::Bool]);
            let name = text(condition, &["name"]);
            if name.is_empty() {
                self.errors.push(Error::required(format!("{path}.name"), ""));
            } else {
                self.errors.extend(names::qualified_name(name).into_iter().map(|why| Error::invalid(format!("{path}.name"), name, why)));
                if seen.contains(&name) {
                    self.errors.push(Error::duplicate(format!("{path}.name"), name));
                }
                seen.push(name);
            }
            expression
        });
        Conditions(conditions.collect())
    }
}

/// `matchConditions`.
#[derive(Debug, Default)]
pub struct Conditions(Vec<Expression>);

impl Conditions {
    /// Compiles the conditions of a webhook, which stand at `path`.
    pub fn compile(list: &[Value], path: &str) -> (Self, Vec<Error>) {
        let mut compiler = Compiler { errors: Vec::new() };
        let conditions = if list.is_empty() { Self::default() } else { compiler.conditions(&env(false, true, &[]), list, path) };
        (conditions, compiler.errors)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that doesn't outweighs errors in others; otherwise errors are the answer.
    pub fn hold(&self, input: &Input<'_>) -> Result<bool, String> {
        let given = Given::new(input, &[]);
        self.hold_for(&given)
    }

    fn hold_for(&self, given: &Given<'_, '_>) -> Result<bool, String> {
        let (mut errors, mut budget) = (Vec::new(), CONDITIONS_BUDGET);
        for expression in &self.0 {
            match given.eval(expression, &mut budget) {
                Ok(Val::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(Failure::Expression(why)) => errors.push(why),
                Err(Failure::Budget) if !errors.is_empty() => break,
                Err(Failure::Budget) => return Err(OUT_OF_BUDGET.into()),
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

/// What expressions are told of a request. Null stands for what there is not.
pub struct Input<'a> {
    /// The object.
    pub object: &'a Value,
    /// The object before.
    pub old: &'a Value,
    /// The request: an `AdmissionRequest` without objects.
    pub request: &'a Value,
    /// The namespace that the object is in.
    pub namespace: &'a Value,
    /// The policy's parameters.
    pub params: &'a Value,
    /// Who knows what the requesting user may do.
    pub authorizer: Arc<dyn Authorizer>,
}

const OUT_OF_BUDGET: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

/// Why an expression has no value.
enum Failure {
    Expression(String),
    /// Nothing more may be evaluated.
    Budget,
}

/// An input with the composed variables, each made when it is first asked for.
struct Given<'i, 'a> {
    input: &'i Input<'a>,
    variables: &'i [(String, Expression)],
    made: RefCell<BTreeMap<String, Result<Val<'a>, String>>>,
    /// What the variables have cost, beyond what is booked already.
    cost: Cell<u64>,
    request: Type,
    namespace: Type,
}

impl<'i, 'a> Given<'i, 'a> {
    fn new(input: &'i Input<'a>, variables: &'i [(String, Expression)]) -> Self {
        Self { input, variables, made: RefCell::default(), cost: Cell::new(0), request: request_type(), namespace: namespace_type() }
    }

    fn eval(&self, expression: &Expression, budget: &mut u64) -> Result<Val<'a>, Failure> {
        let program = expression.program.as_ref().map_err(|why| Failure::Expression(format!("compilation error: {why}")))?;
        let (result, cost) = program.eval(self);
        *budget = budget.checked_sub(cost.saturating_add(self.cost.take())).ok_or(Failure::Budget)?;
        result.map_err(|why| Failure::Expression(format!("expression '{}' resulted in error: {why}", expression.source)))
    }

    fn authorizer(&self, check: Check, query: Query) -> Val<'a> {
        Val::Opaque(Arc::new(Opaque::Authorizer(Arc::clone(&self.input.authorizer), check, query)))
    }
}

impl<'a> Activation<'a> for Given<'_, 'a> {
    fn variable(&self, name: &str) -> Option<Result<Val<'a>, String>> {
        let input = self.input;
        Some(Ok(match name {
            "object" => Val::json(input.object, &Type::Dyn),
            "oldObject" => Val::json(input.old, &Type::Dyn),
            "params" => Val::json(input.params, &Type::Dyn),
            "request" => Val::json(input.request, &self.request),
            "namespaceObject" => Val::json(input.namespace, &self.namespace),
            "authorizer" => self.authorizer(Check::Nothing, Query::default()),
            "authorizer.requestResource" => {
                let word = |path: &[&str]| text(input.request, path).to_owned();
                let query = Query {
                    group: word(&["resource", "group"]),
                    resource: word(&["resource", "resource"]),
                    subresource: word(&["subResource"]),
                    namespace: word(&["namespace"]),
                    name: word(&["name"]),
                    ..Query::default()
                };
                self.authorizer(Check::Resource, query)
            }
            _ => return None,
        }))
    }

    fn composed(&self, name: &str) -> Option<Result<Val<'a>, String>> {
        let (_, expression) = self.variables.iter().find(|(n, _)| n == name)?;
        if let Some(made) = self.made.borrow().get(name) {
            return Some(made.clone());
        }
        let made = match &expression.program {
            Err(why) => Err(format!("composited variable {name:?} fails to compile: {why}")),
            Ok(program) => {
                let (result, cost) = program.eval(self);
                self.cost.set(self.cost.get().saturating_add(cost));
                result.map_err(|why| format!("composited variable {name:?} fails to evaluate: {why}"))
            }
        };
        self.made.borrow_mut().insert(name.to_owned(), made.clone());
        Some(made)
    }
}

/// A validation of a policy.
#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

/// What a mutation's expression makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationKind {
    /// A part of an object, which is applied.
    Apply,
    /// A JSON patch.
    JsonPatch,
}

/// An admission policy's expressions.
#[derive(Debug, Default)]
pub struct Policy {
    variables: Vec<(String, Expression)>,
    conditions: Conditions,
    validations: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
    mutations: Vec<(MutationKind, Expression)>,
}

/// A validation that wasn't passed.
#[derive(Debug, PartialEq)]
pub struct Denial {
    /// Which one.
    pub index: usize,
    /// Why.
    pub message: String,
    /// The reason for the answer; empty when the expression failed.
    pub reason: String,
    /// Whether the expression failed, so that the failure policy decides.
    pub failed: bool,
}

impl Policy {
    /// Compiles the `spec` of a validating or mutating policy.
    pub fn compile(spec: &Value) -> (Self, Vec<Error>) {
        let mut compiler = Compiler { errors: Vec::new() };
        let params = at(spec, &["paramKind"]).is_object();
        let (mut variables, mut types) = (Vec::new(), Vec::new());
        for (i, variable) in items(spec, &["variables"]).iter().enumerate() {
            let (name, path) = (text(variable, &["name"]), format!("spec.variables[{i}]"));
            if name.is_empty() {
                compiler.errors.push(Error::required(format!("{path}.name"), "name is not specified"));
            } else if !names::c_identifier(name).is_empty() {
                compiler.errors.push(Error::invalid(format!("{path}.name"), name, "must be a valid CEL identifier"));
            } else if types.iter().any(|(n, _)| n == name) {
                compiler.errors.push(Error::duplicate(format!("{path}.name"), name));
            }
            let env = env(params, true, &types);
            let expression = compiler.expression(&env, text(variable, &["expression"]), format!("{path}.expression"), &[Type::Dyn]);
            types.push((name.to_owned(), expression.program.as_ref().map_or(Type::Dyn, |p| p.type_.clone())));
            variables.push((name.to_owned(), expression));
        }
        let with_authorizer = env(params, true, &types);
        let without = env(params, false, &types);
        let conditions = compiler.conditions(&with_authorizer, items(spec, &["matchConditions"]), "spec.matchConditions");
        let mut policy = Self { variables, conditions, ..Self::default() };
        for (i, validation) in items(spec, &["validations"]).iter().enumerate() {
            let path = format!("spec.validations[{i}]");
            let expression = compiler.expression(&with_authorizer, text(validation, &["expression"]), format!("{path}.expression"), &[Type::Bool]);
            let source = text(validation, &["messageExpression"]);
            let message_expression = (!source.is_empty())
                .then(|| compiler.expression(&without, source, format!("{path}.messageExpression"), &[Type::String]));
            let (message, reason) = (text(validation, &["message"]).to_owned(), text(validation, &["reason"]).to_owned());
            policy.validations.push(Validation { expression, message, message_expression, reason });
        }
        for (i, annotation) in items(spec, &["auditAnnotations"]).iter().enumerate() {
            let path = format!("spec.auditAnnotations[{i}].valueExpression");
            let expression = compiler.expression(&without, text(annotation, &["valueExpression"]), path, &[Type::String, Type::Null]);
            policy.annotations.push((text(annotation, &["key"]).to_owned(), expression));
        }
        let patching = Env { patch_types: true, ..with_authorizer };
        for (i, mutation) in items(spec, &["mutations"]).iter().enumerate() {
            let (kind, field) = match text(mutation, &["patchType"]) {
                "JSONPatch" => (MutationKind::JsonPatch, "jsonPatch"),
                _ => (MutationKind::Apply, "applyConfiguration"),
            };
            if !at(mutation, &[field]).is_object() || text(mutation, &["patchType"]).is_empty() {
                // What is missing is said where the rules of its kind are.
                continue;
            }
            let (path, source) = (format!("spec.mutations[{i}].{field}.expression"), text(mutation, &[field, "expression"]));
            let mut expression = compiler.expression(&patching, source, path.clone(), &[Type::Dyn]);
            let wanted = if kind == MutationKind::Apply { "Object" } else { "list(JSONPatch)" };
            let found = expression.program.as_ref().map_or(Type::Dyn, |p| p.type_.clone());
            if found != Type::Dyn && found.to_string() != wanted && !(kind == MutationKind::JsonPatch && found == Type::list(Type::Dyn)) {
                let why = format!("must evaluate to {wanted} but got {found}");
                compiler.errors.push(Error::invalid(path, source, why.as_str()));
                expression.program = Err(why);
            }
            policy.mutations.push((kind, expression));
        }
        (policy, compiler.errors)
    }

    /// Whether the match conditions hold.
    pub fn matches(&self, input: &Input<'_>) -> Result<bool, String> {
        self.conditions.hold_for(&Given::new(input, &self.variables))
    }

    /// The validations that the input doesn't pass, and the audit annotations: key, and text (`None` for no annotation)
    /// or why there is none.
    #[expect(clippy::type_complexity)]
    pub fn validate(&self, input: &Input<'_>) -> (Vec<Denial>, Vec<(String, Result<Option<String>, String>)>) {
        let given = Given::new(input, &self.variables);
        let mut budget = BUDGET;
        let failed = |index: usize, message: String| Denial { index, message, reason: String::new(), failed: true };
        let mut results = Vec::new();
        for (index, validation) in self.validations.iter().enumerate() {
            match given.eval(&validation.expression, &mut budget) {
                Err(Failure::Budget) => return (vec![failed(index, OUT_OF_BUDGET.into())], Vec::new()),
                result => results.push(result),
            }
        }
        // Messages are made for all, with what is left.
        let made = self.validations.iter().map(|v| v.message_expression.as_ref().map(|m| given.eval(m, &mut budget)));
        let made: Vec<_> = made.collect();
        let spent = made.iter().any(|made| matches!(made, Some(Err(Failure::Budget))));
        let mut denials = Vec::new();
        for (index, (validation, (result, made))) in self.validations.iter().zip(results.into_iter().zip(made)).enumerate() {
            match result {
                Err(Failure::Expression(why)) => denials.push(failed(index, why)),
                _ if spent => denials.push(failed(index, format!("failed messageExpression: {OUT_OF_BUDGET}"))),
                Ok(Val::Bool(true)) => {}
                _ => {
                    let reason = if validation.reason.is_empty() { "Invalid" } else { &validation.reason };
                    denials.push(Denial { index, message: validation.message(made), reason: reason.to_owned(), failed: false });
                }
            }
        }
        let mut budget = BUDGET;
        let annotations = self.annotations.iter().map(|(key, expression)| {
            let text = match given.eval(expression, &mut budget) {
                Ok(Val::Str(text)) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
                Ok(Val::Null) => Ok(None),
                Ok(other) => Err(format!(
                    "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                    expression.source,
                    other.type_name()
                )),
                Err(Failure::Expression(why)) => Err(why),
                Err(Failure::Budget) => Err(OUT_OF_BUDGET.to_owned()),
            };
            (key.clone(), text)
        });
        let annotations = annotations.collect();
        (denials, annotations)
    }

    /// How many mutations there are.
    pub fn mutations(&self) -> usize {
        self.mutations.len()
    }

    /// What one of the mutations makes of the input: an object to be applied, or the operations of a patch.
    pub fn mutation(&self, index: usize, input: &Input<'_>) -> Result<(MutationKind, Value), String> {
        let (kind, expression) = self.mutations.get(index).ok_or("no such mutation")?;
        let given = Given::new(input, &self.variables);
        let made = given.eval(expression, &mut { BUDGET }).map_err(|failure| match failure {
            Failure::Expression(why) => why,
            Failure::Budget => OUT_OF_BUDGET.to_owned(),
        })?;
        check_names(&made, if *kind == MutationKind::Apply { "Object" } else { "" }).map_err(|why| format!("type mismatch: {why}"))?;
        Ok((*kind, made.to_json()?))
    }
}

/// What is suspicious in a validating policy's expressions, given the types of the objects that it is about (with their
/// names, `apps/v1, Kind=Deployment`): field and warning, for `status.typeChecking`.
pub fn type_check(spec: &Value, objects: &[(String, Type)], params: Option<&Type>) -> Vec<(String, String)> {
    let params = at(spec, &["paramKind"]).is_object().then(|| params.unwrap_or(&Type::Dyn));
    let mut warnings: Vec<(String, String)> = Vec::new();
    for (i, validation) in items(spec, &["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = text(validation, &[field]);
            let mut lines = Vec::new();
            for (name, object) in objects.iter().filter(|_| !source.is_empty()) {
                let mut types: Vec<(String, Type)> = Vec::new();
                for variable in items(spec, &["variables"]) {
                    let env = typed_env(object, params, true, &types);
                    let type_ = Program::compile(&env, text(variable, &["expression"])).map_or(Type::Dyn, |p| p.type_);
                    types.push((text(variable, &["name"]).to_owned(), type_));
                }
                if let Err(why) = Program::compile(&typed_env(object, params, true, &types), source) {
                    lines.push(format!("{name}: compilation failed: {why}\n"));
                }
            }
            if !lines.is_empty() {
                warnings.push((format!("spec.validations[{i}].{field}"), lines.join("\n")));
            }
        }
    }
    warnings
}

impl Validation {
    /// What is said of a refusal. `made` is what the expression for that has made.
    fn message(&self, made: Option<Result<Val<'_>, Failure>>) -> String {
        super::message(made.and_then(Result::ok)).unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.source.trim()),
            message => message.to_owned(),
        })
    }
}

/// An object literal's type is named for the place where it stands: `Object.spec` in the field `spec` of `Object`.
fn check_names(val: &Val<'_>, expected: &str) -> Result<(), String> {
    if let Val::Object(name, fields) = val {
        let base = if **name == *"JSONPatch" { "" } else { name };
        if !expected.is_empty() && **name != *expected {
            return Err(format!("unexpected type name {name:?}, expected {expected:?}, which matches field name path from root Object type"));
        }
        for (key, field) in fields.iter() {
            let below = match key {
                super::Key::Str(key) if !base.is_empty() => format!("{base}.{key}"),
                _ => String::new(),
            };
            check_names(field, &below)?;
        }
    } else if let Val::List(list) = val {
        list.iter().try_for_each(|item| check_names(item, expected))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Decision;
    use super::*;

    struct All;

    impl Authorizer for All {
        fn check(&self, query: &Query) -> Decision {
            Decision { allowed: query.verb == "break", ..Decision::default() }
        }
    }

    fn with<T>(object: &Value, then: impl FnOnce(&Input<'_>) -> T) -> T {
        let request = json!({"operation": "CREATE", "userInfo": {"username": "u", "groups": ["g"]}, "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": "n"});
        let (params, namespace) = (json!({"max": 3}), json!({"metadata": {"name": "n", "labels": {"a": "b"}}}));
        then(&Input { object, old: &Value::Null, request: &request, namespace: &namespace, params: &params, authorizer: Arc::new(All) })
    }

    fn denials(spec: Value) -> Vec<String> {
        let (policy, errors) = Policy::compile(&spec);
        assert_eq!(errors, []);
        with(&json!({"metadata": {"name": "x"}, "spec": {"replicas": 5}}), |input| policy.validate(input).0.into_iter().map(|d| d.message).collect())
    }

    #[test]
    fn policies() {
        let spec = |validation: Value| json!({"paramKind": {"kind": "X"}, "variables": [
            {"name": "n", "expression": "object.spec.replicas"}, {"name": "twice", "expression": "variables.n * 2"}, {"name": "bad", "expression": "object.missing"},
        ], "validations": [validation]});
        let check = |expression: &str| denials(spec(json!({"expression": expression})));
        assert_eq!(check("variables.twice == 10 && params.max == 3 && request.userInfo.groups[0] == 'g' && namespaceObject.metadata.labels.a == 'b'"), [""; 0]);
        assert_eq!(check("oldObject == null && authorizer.requestResource.check('break').allowed() && !authorizer.path('/').check('get').allowed()"), [""; 0]);
        assert_eq!(check("object.spec.replicas <= params.max"), ["failed expression: object.spec.replicas <= params.max"]);
        assert_eq!(check("variables.bad > 1"), ["expression 'variables.bad > 1' resulted in error: composited variable \"bad\" fails to evaluate: no such key: missing"]);
        let message = json!({"expression": "false", "messageExpression": "'at most ' + string(params.max)", "message": "no"});
        assert_eq!(denials(spec(message)), ["at most 3"]);
        assert_eq!(denials(spec(json!({"expression": "false", "messageExpression": "string(object.nothing)", "message": " no "}))), ["no"]);
    }

    #[test]
    fn what_is_wrong_is_said_when_it_is_written() {
        let errors = |spec: Value| Policy::compile(&spec).1.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(errors(json!({"validations": [{"expression": "1"}]})), ["spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int"]);
        assert_eq!(errors(json!({"validations": [{"expression": "params == 1"}]})).len(), 1);
        assert_eq!(errors(json!({"validations": [{"expression": "request.foo == 1"}]})).len(), 1);
        assert_eq!(errors(json!({"variables": [{"name": "a-b", "expression": "1"}]})), ["spec.variables[0].name: Invalid value: \"a-b\": must be a valid CEL identifier"]);
        assert_eq!(errors(json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "1"}}]})), ["spec.mutations[0].jsonPatch.expression: Invalid value: \"1\": must evaluate to list(JSONPatch) but got int"]);
    }

    #[test]
    fn types_are_checked_where_they_are_known() {
        let deployment = crate::resource::find("apps", "v1", "deployments").expect("deployments");
        let type_ = Type::of_builtin(deployment.schema());
        let check = |expression: &str| {
            let spec = json!({"variables": [{"name": "n", "expression": "object.spec.replicas"}], "validations": [{"expression": expression}]});
            type_check(&spec, &[("apps/v1, Kind=Deployment".into(), type_.clone())], None)
        };
        assert_eq!(check("variables.n > 1 && object.spec.template.spec.containers.all(c, c.image != '') && object.metadata.labels['a'] == 'b'"), []);
        let expected = "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:12: undefined field 'replica'\n | object.spec.replica > 1\n | ...........^\n";
        assert_eq!(check("object.spec.replica > 1"), [("spec.validations[0].expression".to_owned(), expected.to_owned())]);
        assert_eq!(check("variables.n == 'x'").len(), 1);
    }

    #[test]
    fn mutations() {
        let made = |mutation: Value| {
            let (policy, errors) = Policy::compile(&json!({"mutations": [mutation]}));
            assert_eq!(errors, []);
            with(&json!({"metadata": {"name": "x"}}), |input| policy.mutation(0, input))
        };
        let apply = |expression: &str| made(json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}));
        let patch = |expression: &str| made(json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}));
        assert_eq!(apply("Object{metadata: Object.metadata{labels: {'a': 'b'}}}"), Ok((MutationKind::Apply, json!({"metadata": {"labels": {"a": "b"}}}))));
        let operations = json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}]);
        assert_eq!(patch("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"), Ok((MutationKind::JsonPatch, operations)));
        assert_eq!(patch("has(object.spec) ? [JSONPatch{op: 'remove', path: '/spec'}] : []"), Ok((MutationKind::JsonPatch, json!([]))));
    }

    #[test]
    fn conditions() {
        let hold = |list: Value| {
            let (conditions, errors) = Conditions::compile(list.as_array().expect("a list"), "webhooks[0].matchConditions");
            assert_eq!(errors, []);
            with(&json!({"metadata": {"name": "x"}}), |input| conditions.hold(input))
        };
        let condition = |expression: &str| json!({"name": expression.len().to_string(), "expression": expression});
        assert_eq!(hold(json!([condition("object.metadata.name == 'x'"), condition("true")])), Ok(true));
        assert_eq!(hold(json!([condition("object.nothing == 1"), condition("false")])), Ok(false));
        assert_eq!(hold(json!([condition("object.nothing == 1")])), Err("expression 'object.nothing == 1' resulted in error: no such key: nothing".into()));
    }
}
