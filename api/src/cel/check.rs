//! The types of an expression, and what is wrong with them, in cel-go's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Macro, MacroKind, Node};
use super::functions::overloads;
use super::lib::time;
use super::parse::path;
use super::types::{ListKind, ObjectType, Type};
use super::value::Val;
use super::{Env, Issue};

const TYPE_NAMES: [&str; 14] = [
    "bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "google.protobuf.Timestamp",
    "google.protobuf.Duration", "optional_type", "dyn",
];

/// The type of the expression, whose names are resolved on the way: `ip.isCanonical(x)` is a call of that function.
pub(super) fn check(env: &Env, expr: &mut Expr) -> Result<Type, Vec<Issue>> {
    let mut checker = Checker { env, locals: Vec::new(), issues: Vec::new() };
    let type_ = checker.expr(expr);
    checker.issues.sort_by_key(|issue| issue.at);
    if checker.issues.is_empty() { Ok(type_) } else { Err(checker.issues) }
}

struct Checker<'a> {
    env: &'a Env,
    locals: Vec<(String, Type)>,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    /// An error; what it is of counts as dyn, so that nothing follows from it.
    fn wrong(&mut self, at: usize, message: String) -> Type {
        self.issues.push(Issue { at, message });
        Type::Dyn
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        local.or_else(|| self.env.variable(name).cloned())
    }

    fn expr(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        // A dotted name may be one variable: `authorizer.requestResource`.
        if let Node::Select { .. } = &expr.node
            && let Some(name) = path(expr)
            && let Some(type_) = self.env.variable(&name)
        {
            expr.node = Node::Ident(name);
            return type_.clone();
        }
        if let Node::Call { .. } = &expr.node {
            return self.call(expr);
        }
        match &mut expr.node {
            Node::Literal(val) => literal(val),
            Node::Ident(name) => match self.variable(name) {
                Some(type_) => type_,
                None if TYPE_NAMES.contains(&name.as_str()) => Type::Type,
                None => {
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    self.wrong(at, message)
                }
            },
            Node::Select { of, field, optional } => {
                if TYPE_NAMES.contains(&path_of(of, field).as_str()) {
                    return Type::Type;
                }
                let of = self.expr(of);
                let found = self.select(at, &of, field);
                if *optional && !matches!(found, Type::Optional(_)) { Type::Optional(Arc::new(found)) } else { found }
            }
            Node::Has { of, field } => {
                let of = self.expr(of);
                self.select(at, &of, field);
                Type::Bool
            }
            Node::And(terms) => self.logic(at, "_&&_", terms),
            Node::Or(terms) => self.logic(at, "_||_", terms),
            Node::Ternary(parts) => {
                let [condition, yes, no] = &mut **parts;
                let types = [self.expr(condition), self.expr(yes), self.expr(no)];
                let mut bound = Vec::new();
                let fits = Type::Bool.takes(&types[0], &mut bound) && Type::Param(0).takes(&types[1], &mut bound) && Type::Param(0).takes(&types[2], &mut bound);
                if fits { Type::Param(0).with(&bound) } else { self.no_overload(at, "_?_:_", false, &types) }
            }
            Node::List(items) => {
                let mut all: Option<Type> = None;
                for (item, optional) in items {
                    let type_ = self.expr(item);
                    let type_ = self.unwrapped(item.at, type_, *optional);
                    all = Some(self.same(item.at, all, type_));
                }
                Type::list(all.unwrap_or(Type::Dyn))
            }
            Node::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let type_ = self.expr(key);
                    keys = Some(self.same(key.at, keys, type_));
                    let type_ = self.expr(value);
                    let type_ = self.unwrapped(value.at, type_, *optional);
                    values = Some(self.same(value.at, values, type_));
                }
                Type::map(keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn))
            }
            Node::Struct { name, fields } => {
                if !self.env.patch_types || !(name == "JSONPatch" || name == "Object" || name.starts_with("Object.")) {
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    return self.wrong(at, message);
                }
                for (field, value, optional) in fields.iter_mut() {
                    let found = self.expr(value);
                    let found = self.unwrapped(value.at, found, *optional);
                    if name == "JSONPatch" && !matches!(field.as_str(), "op" | "path" | "from" | "value") {
                        self.wrong(at, format!("undefined field '{field}'"));
                    } else if name == "JSONPatch" && field != "value" && !Type::String.takes(&found, &mut Vec::new()) {
                        self.wrong(value.at, format!("expected type of field '{field}' is 'string' but provided type is '{found}'"));
                    } else if let Type::Object(object) = &found
                        && name != "JSONPatch"
                        && object.open
                        && object.name != format!("{name}.{field}")
                    {
                        self.wrong(value.at, format!("expected type of field '{field}' is '{name}.{field}' but provided type is '{found}'"));
                    }
                }
                Type::Object(Arc::new(ObjectType { name: name.clone(), fields: BTreeMap::new(), open: true }))
            }
            Node::Macro(m) => self.comprehension(at, m),
            Node::Call { .. } => Type::Dyn,
        }
    }

    fn logic(&mut self, at: usize, name: &str, terms: &mut [Expr]) -> Type {
        let types: Vec<Type> = terms.iter_mut().map(|t| self.expr(t)).collect();
        if types.iter().all(|t| Type::Bool.takes(t, &mut Vec::new())) { Type::Bool } else { self.no_overload(at, name, false, &types[..2.min(types.len())]) }
    }

    /// An item's type where the literal must be of one type.
    fn same(&mut self, at: usize, all: Option<Type>, found: Type) -> Type {
        match all {
            None => found,
            Some(known) => {
                if known == Type::Dyn || found == Type::Dyn {
                    return Type::Dyn;
                }
                if known.takes(&found, &mut Vec::new()) {
                    return known;
                }
                self.wrong(at, format!("expected type '{known}' but found '{found}'"))
            }
        }
    }

    /// The type in an optional, where `?` says that there is one.
    fn unwrapped(&mut self, at: usize, type_: Type, optional: bool) -> Type {
        match (optional, type_) {
            (false, type_) => type_,
            (true, Type::Optional(inner)) => (*inner).clone(),
            (true, Type::Dyn) => Type::Dyn,
            (true, other) => self.wrong(at, format!("expected type 'optional_type(dyn)' but found '{other}'")),
        }
    }

    fn select(&mut self, at: usize, of: &Type, field: &str) -> Type {
        match of {
            Type::Dyn => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some((_, type_)) => type_.clone(),
                None if object.open => Type::Dyn,
                None => self.wrong(at, format!("undefined field '{field}'")),
            },
            Type::Optional(inner) => {
                let inner = self.select(at, inner, field);
                Type::Optional(Arc::new(inner))
            }
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.wrong(at, message)
            }
        }
    }

    fn call(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        let Node::Call { name, member, args } = &mut expr.node else { return Type::Dyn };
        if *member
            && let Some(space) = args.first().and_then(path)
            && self.variable(&space).is_none()
            && overloads(&format!("{space}.{name}")).is_some()
        {
            *name = format!("{space}.{name}");
            *member = false;
            args.remove(0);
        }
        let known = overloads(name).filter(|all| all.iter().any(|o| o.member == *member));
        let (name, member) = (name.clone(), *member);
        let types: Vec<Type> = args.iter_mut().map(|arg| self.expr(arg)).collect();
        self.literal_arguments(&name, args);
        let Some(known) = known else {
            if let Some(all) = overloads(&name)
                && !all.is_empty()
            {
                return self.no_overload(at, &name, member, &types);
            }
            return self.wrong(at, format!("undeclared reference to '{name}' (in container '')"));
        };
        let mut results: Vec<Type> = Vec::new();
        for overload in known.iter().filter(|o| o.member == member && o.args.len() == types.len()) {
            let mut bound = Vec::new();
            if overload.args.iter().zip(&types).all(|(wanted, found)| wanted.takes(found, &mut bound)) {
                let result = overload.result.with(&bound);
                if !results.contains(&result) {
                    results.push(result);
                }
            }
        }
        match results.len() {
            0 => self.no_overload(at, &name, member, &types),
            1 => results.remove(0),
            _ => Type::Dyn,
        }
    }

    /// What can be told of literal arguments without calling.
    fn literal_arguments(&mut self, name: &str, args: &[Expr]) {
        let index = match name {
            "matches" => 1,
            "timestamp" | "duration" => 0,
            _ => return,
        };
        let Some(Expr { at, node: Node::Literal(Val::Str(text)), .. }) = args.get(index) else { return };
        let fine = match name {
            "matches" => regex::Regex::new(text).is_ok(),
            "timestamp" => time::parse_timestamp(text).is_some(),
            _ => time::parse_duration(text).is_some(),
        };
        if !fine {
            self.wrong(*at, format!("invalid {name} argument"));
        }
    }

    fn no_overload(&mut self, at: usize, name: &str, member: bool, types: &[Type]) -> Type {
        let shown = |types: &[Type]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let applied = match types.split_first() {
            Some((receiver, rest)) if member => format!("{receiver}.({})", shown(rest)),
            _ => format!("({})", shown(types)),
        };
        self.wrong(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn comprehension(&mut self, at: usize, m: &mut Macro) -> Type {
        let range = self.expr(&mut m.range);
        let two = m.vars.len() == 2;
        let dynamic = (Type::Dyn, Type::Dyn);
        let (first, second) = match (&range, m.kind) {
            (Type::Optional(inner), MacroKind::OptMap | MacroKind::OptFlatMap) => ((**inner).clone(), Type::Dyn),
            (Type::Dyn, _) => dynamic,
            (_, MacroKind::OptMap | MacroKind::OptFlatMap) => {
                let name = if m.kind == MacroKind::OptMap { "optMap" } else { "optFlatMap" };
                self.no_overload(at, name, true, std::slice::from_ref(&range));
                dynamic
            }
            (Type::List(item, _), _) if two => (Type::Int, (**item).clone()),
            (Type::List(item, _), _) => ((**item).clone(), Type::Dyn),
            (Type::Map(key, value), kind) if kind != MacroKind::SortBy => ((**key).clone(), (**value).clone()),
            (Type::Object(_), kind) if kind != MacroKind::SortBy => (Type::String, Type::Dyn),
            (other, _) => {
                let message = format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)");
                self.wrong(m.range.at, message);
                dynamic
            }
        };
        let before = self.locals.len();
        for (name, type_) in m.vars.iter().zip([first.clone(), second.clone()]) {
            self.locals.push((name.clone(), type_));
        }
        let filter = m.filter.as_mut().map(|filter| (filter.at, self.expr(filter)));
        let body = self.expr(&mut m.body);
        self.locals.truncate(before);
        let judges = matches!(m.kind, MacroKind::All | MacroKind::Exists | MacroKind::ExistsOne | MacroKind::Filter);
        let judged = if judges { Some((m.body.at, body.clone())) } else { filter };
        if let Some((at, type_)) = judged
            && !Type::Bool.takes(&type_, &mut Vec::new())
        {
            self.wrong(at, format!("expected type 'bool' but found '{type_}'"));
        }
        match m.kind {
            MacroKind::All | MacroKind::Exists | MacroKind::ExistsOne => Type::Bool,
            MacroKind::Map => Type::list(body),
            MacroKind::Filter => match range {
                Type::List(item, _) => Type::List(item, Arc::new(ListKind::Atomic)),
                _ => Type::list(first),
            },
            MacroKind::SortBy => range,
            MacroKind::TransformMap => Type::map(first, body),
            MacroKind::TransformMapEntry => match body {
                Type::Map(..) | Type::Dyn => body,
                other => self.wrong(m.body.at, format!("expected type 'map(dyn, dyn)' but found '{other}'")),
            },
            MacroKind::OptMap => Type::Optional(Arc::new(body)),
            MacroKind::OptFlatMap => body,
        }
    }
}

fn path_of(of: &Expr, field: &str) -> String {
    path(of).map(|p| format!("{p}.{field}")).unwrap_or_default()
}

fn literal(val: &Val<'_>) -> Type {
    match val {
        Val::Bool(_) => Type::Bool,
        Val::Int(_) => Type::Int,
        Val::Uint(_) => Type::Uint,
        Val::Double(_) => Type::Double,
        Val::Str(_) => Type::String,
        Val::Bytes(_) => Type::Bytes,
        _ => Type::Null,
    }
}
