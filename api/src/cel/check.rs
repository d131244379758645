//! The types of an expression, and what is wrong with them, in cel-go's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Macro, MacroKind, Node, each_child_mut};
use super::functions::{PARAMS, overloads};
use super::lib::{formats, time};
use super::parse::path;
use super::types::{ObjectType, Type};
use super::unify::Bindings;
use super::value::Val;
use super::{Env, Issue};

/// The type of the expression, whose names are resolved on the way: `ip.isCanonical(x)` is a call of that function.
pub(super) fn check(env: &Env, expr: &mut Expr) -> Result<Type, Vec<Issue>> {
    let mut checker = Checker { env, locals: Vec::new(), issues: Vec::new(), bindings: Bindings::default(), sure: false };
    checker.expr(expr);
    if checker.issues.is_empty() {
        checker.settle(expr, false);
    }
    if checker.bindings.exhausted() {
        checker.issues.push(Issue { at: 0, message: "expression is too complex to be checked".into() });
    }
    checker.issues.sort_by_key(|issue| issue.at);
    if checker.issues.is_empty() { Ok(expr.type_.clone()) } else { Err(checker.issues) }
}

/// The type that a name stands for.
fn named(name: &str) -> Option<Type> {
    let any = || Type::Dyn;
    Some(Type::Type(Arc::new(match name {
        "list" => Type::list(any()),
        "map" => Type::map(any(), any()),
        "null_type" => Type::Null,
        "type" => Type::Type(Arc::new(any())),
        "dyn" => any(),
        "optional_type" => Type::Optional(Arc::new(any())),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        name => Type::plain(name)?,
    })))
}

struct Checker<'a> {
    env: &'a Env,
    locals: Vec<(String, Type)>,
    issues: Vec<Issue>,
    bindings: Bindings,
    /// Whether only one overload of the function looked up last fits.
    sure: bool,
}

impl Checker<'_> {
    /// An error; what it is of counts as dyn, so that nothing follows from it.
    fn wrong(&mut self, at: usize, message: String) -> Type {
        self.issues.push(Issue { at, message });
        Type::Dyn
    }

    fn mismatch(&mut self, at: usize, wanted: &Type, found: &Type) -> Type {
        let (wanted, found) = (self.bindings.resolve(wanted, true), self.bindings.resolve(found, true));
        self.wrong(at, format!("expected type '{wanted}' but found '{found}'"))
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.wrong(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        local.or_else(|| self.env.variable(name).cloned())
    }

    fn expr(&mut self, expr: &mut Expr) -> Type {
        let mut type_ = self.typed(expr);
        if !self.bindings.is_small(&type_) {
            type_ = self.wrong(expr.at, "type is too large".into());
        }
        expr.type_ = type_.clone();
        type_
    }

    fn typed(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        // A dotted name may be one variable, `authorizer.requestResource`, or a type.
        if let Node::Select { .. } = &expr.node
            && let Some(name) = path(expr)
            && (self.env.variable(&name).is_some() || named(&name).is_some())
        {
            expr.node = Node::Ident(name);
        }
        match &mut expr.node {
            Node::Call { name, member, sure, args } => {
                let type_ = self.call(at, name, member, args);
                *sure = self.sure;
                type_
            }
            Node::Literal(val) => literal(val),
            Node::Ident(name) => match (self.variable(name), named(name)) {
                (Some(type_), _) => type_,
                (None, Some(type_)) => {
                    expr.constant = Some(Box::new(Val::Type(name.as_str().into())));
                    type_
                }
                (None, None) => {
                    let name = name.clone();
                    self.undeclared(at, &name)
                }
            },
            Node::Select { of, field, optional } => {
                let of = self.expr(of);
                let found = self.select(at, &of, field);
                if *optional && !matches!(found, Type::Optional(_)) { Type::Optional(Arc::new(found)) } else { found }
            }
            Node::Has { of, field } => {
                let of = self.expr(of);
                self.select(at, &of, field);
                Type::Bool
            }
            Node::And(terms) | Node::Or(terms) => {
                for term in terms {
                    let type_ = self.expr(term);
                    self.judgement(term.at, &type_);
                }
                Type::Bool
            }
            Node::Ternary(parts) => {
                let [condition, yes, no] = &mut **parts;
                let types = [self.expr(condition), self.expr(yes), self.expr(no)];
                self.choice(at, &types)
            }
            Node::List(items) => {
                let mut all = None;
                for (item, optional) in items {
                    let type_ = self.expr(item);
                    let type_ = self.unwrapped(item.at, type_, *optional);
                    all = Some(self.joined(all, type_));
                }
                Type::list(all.unwrap_or_else(|| self.bindings.fresh()))
            }
            Node::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let type_ = self.expr(key);
                    keys = Some(self.joined(keys, type_));
                    let type_ = self.expr(value);
                    let type_ = self.unwrapped(value.at, type_, *optional);
                    values = Some(self.joined(values, type_));
                }
                Type::map(keys.unwrap_or_else(|| self.bindings.fresh()), values.unwrap_or_else(|| self.bindings.fresh()))
            }
            Node::Struct { name, fields } => self.construct(at, name, fields),
            Node::Macro(m) => self.comprehension(at, m),
        }
    }

    /// An object literal: only those that patches are made of.
    fn construct(&mut self, at: usize, name: &str, fields: &mut [(String, Expr, bool)]) -> Type {
        if !self.env.patch_types || !(name == "JSONPatch" || name == "Object" || name.starts_with("Object.")) {
            return self.undeclared(at, name);
        }
        for (field, value, optional) in fields.iter_mut() {
            let found = self.expr(value);
            let found = self.unwrapped(value.at, found, *optional);
            if name == "JSONPatch" && !matches!(field.as_str(), "op" | "path" | "from" | "value") {
                self.wrong(at, format!("undefined field '{field}'"));
            } else if name == "JSONPatch" && field != "value" && !self.bindings.fits(&Type::String, &found) {
                self.wrong(value.at, format!("expected type of field '{field}' is 'string' but provided type is '{found}'"));
            } else if let Type::Object(object) = &found
                && name != "JSONPatch"
                && object.open
                && object.name != format!("{name}.{field}")
            {
                self.wrong(value.at, format!("expected type of field '{field}' is '{name}.{field}' but provided type is '{found}'"));
            }
        }
        Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields: BTreeMap::new(), open: true }))
    }

    /// A term of `&&` or `||`.
    fn judgement(&mut self, at: usize, type_: &Type) {
        if !self.bindings.fits(type_, &Type::Bool) {
            self.mismatch(at, &Type::Bool, type_);
        }
    }

    /// `condition ? yes : no`
    fn choice(&mut self, at: usize, types: &[Type; 3]) -> Type {
        let made = self.bindings.fresh();
        if self.bindings.all_fit(types.iter().zip([&Type::Bool, &made, &made])) {
            return self.bindings.resolve(&made, false);
        }
        self.no_overload(at, "_?_:_", false, types)
    }

    /// The most general of two types, if they fit: what a literal's items are.
    fn joined(&mut self, all: Option<Type>, found: Type) -> Type {
        let Some(known) = all else { return found };
        if !self.bindings.fits(&known, &found) {
            return Type::Dyn;
        }
        if super::unify::less_specific(&known, &found) { known } else { found }
    }

    /// The type in an optional, where `?` says that there is one.
    fn unwrapped(&mut self, at: usize, type_: Type, optional: bool) -> Type {
        match (optional, type_) {
            (true, Type::Optional(inner)) => (*inner).clone(),
            (true, other) if !other.is_dyn() => self.mismatch(at, &Type::Optional(Arc::new(other.clone())), &other),
            (_, type_) => type_,
        }
    }

    fn select(&mut self, at: usize, of: &Type, field: &str) -> Type {
        match self.bindings.resolve(of, false) {
            Type::Map(_, value) => (*value).clone(),
            Type::Object(object) => match object.field(field) {
                Some((_, type_)) => type_.clone(),
                None if object.open => Type::Dyn,
                None => self.wrong(at, format!("undefined field '{field}'")),
            },
            Type::Optional(inner) => Type::Optional(Arc::new(self.select(at, &inner, field))),
            Type::Param(unknown) => {
                self.bindings.fits(&Type::Dyn, &Type::Param(unknown));
                Type::Dyn
            }
            other if other.is_dyn() => Type::Dyn,
            other => self.wrong(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn call(&mut self, at: usize, name: &mut String, member: &mut bool, args: &mut Vec<Expr>) -> Type {
        if *member
            && let Some(space) = args.first().and_then(path)
            && overloads(&format!("{space}.{name}")).is_some()
        {
            *name = format!("{space}.{name}");
            *member = false;
            args.remove(0);
        }
        let types: Vec<Type> = args.iter_mut().map(|arg| self.expr(arg)).collect();
        self.resolved(at, name, *member, &types)
    }

    /// The type that a call with arguments of these types is of.
    fn resolved(&mut self, at: usize, name: &str, member: bool, types: &[Type]) -> Type {
        let Some(known) = overloads(name) else { return self.undeclared(at, name) };
        let mut result: Option<Type> = None;
        self.sure = true;
        for overload in known.iter().filter(|o| o.member == member && o.args.len() == types.len()) {
            let base = self.bindings.count();
            let wanted: Vec<Type> = overload.args.iter().map(|arg| arg.shifted(base)).collect();
            (0..PARAMS).for_each(|_| drop(self.bindings.fresh()));
            if self.bindings.all_fit(types.iter().zip(&wanted)) {
                let made = self.bindings.resolve(&overload.result.shifted(base), false);
                self.sure = result.is_none();
                result = Some(match result {
                    Some(before) if !before.is_dyn() && !before.same(&made) => Type::Dyn,
                    Some(before) => before,
                    None => made,
                });
            }
        }
        result.unwrap_or_else(|| self.no_overload(at, name, member, types))
    }

    fn no_overload(&mut self, at: usize, name: &str, member: bool, types: &[Type]) -> Type {
        let types: Vec<String> = types.iter().map(|t| self.bindings.resolve(t, true).to_string()).collect();
        let applied = match types.split_first() {
            Some((receiver, rest)) if member => format!("{receiver}.({})", rest.join(", ")),
            _ => format!("({})", types.join(", ")),
        };
        self.wrong(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn comprehension(&mut self, at: usize, m: &mut Macro) -> Type {
        let range = self.expr(&mut m.range);
        let range = self.bindings.resolve(&range, false);
        let (first, second) = match m.kind {
            MacroKind::Bind => (range.clone(), Type::Dyn),
            MacroKind::OptMap | MacroKind::OptFlatMap => {
                self.resolved(at, "hasValue", true, std::slice::from_ref(&range));
                (self.resolved(at, "value", true, std::slice::from_ref(&range)), Type::Dyn)
            }
            _ => self.round(m.range.at, &range, m.vars.len() == 2),
        };
        let before = self.locals.len();
        for (name, type_) in m.vars.iter().zip([first.clone(), second]) {
            self.locals.push((name.clone(), type_));
        }
        let filter = m.filter.as_mut().map(|filter| self.expr(filter));
        let body = self.expr(&mut m.body);
        self.locals.truncate(before);
        let made = match m.kind {
            MacroKind::All | MacroKind::Exists => {
                self.judgement(m.body.at, &body);
                return Type::Bool;
            }
            MacroKind::ExistsOne => {
                self.choice(at, &[body, Type::Int, Type::Int]);
                return Type::Bool;
            }
            MacroKind::Filter => {
                let kept = Type::list(first);
                return self.choice(at, &[body, kept.clone(), kept]);
            }
            MacroKind::Map => Type::list(body),
            MacroKind::SortBy => return self.resolved(at, "@sortByAssociatedKeys", true, &[range, Type::list(body)]),
            MacroKind::TransformMap => Type::map(first, body),
            MacroKind::TransformMapEntry => {
                let entry = Type::map(self.bindings.fresh(), self.bindings.fresh());
                self.resolved(at, "cel.@mapInsert", false, &[entry, body])
            }
            MacroKind::OptMap => return Type::Optional(Arc::new(body)),
            MacroKind::OptFlatMap => {
                let none = Type::Optional(Arc::new(self.bindings.fresh()));
                return self.choice(at, &[Type::Bool, body, none]);
            }
            MacroKind::Bind => return body,
        };
        match filter {
            Some(filter) => self.choice(at, &[filter, made.clone(), made]),
            None => made,
        }
    }

    /// The types of a loop's variables.
    fn round(&mut self, at: usize, range: &Type, two: bool) -> (Type, Type) {
        match range {
            Type::List(item, _) if two => (Type::Int, (**item).clone()),
            Type::List(item, _) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            Type::Param(_) => {
                self.bindings.fits(&Type::Dyn, range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                self.wrong(at, format!("expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"));
                (Type::Dyn, Type::Dyn)
            }
        }
    }

    /// Puts in what types have come to be in the end, and looks at literals. `exempt` is whether items may differ.
    fn settle(&mut self, expr: &mut Expr, exempt: bool) {
        expr.type_ = self.bindings.resolve(&expr.type_, true);
        let exempt = exempt || matches!(&expr.node, Node::Call { name, .. } if name == "format");
        each_child_mut(&mut expr.node, &mut |child| self.settle(child, exempt));
        match &expr.node {
            Node::Call { name, member, args, .. } => self.literal_arguments(expr.at, name, *member, args),
            Node::List(items) if !exempt => self.alike(items.iter().map(|(item, optional)| (item, *optional)), true),
            Node::Map(entries) if !exempt => {
                self.alike(entries.iter().map(|(key, ..)| (key, false)), false);
                self.alike(entries.iter().map(|(_, value, optional)| (value, *optional)), false);
            }
            _ => {}
        }
        super::eval::fold(expr);
    }

    /// The items of a literal are of one type.
    fn alike<'e>(&mut self, items: impl Iterator<Item = (&'e Expr, bool)>, once: bool) {
        let mut first: Option<&Type> = None;
        for (item, optional) in items {
            let found = match &item.type_ {
                Type::Optional(inner) if optional => &**inner,
                other => other,
            };
            match first {
                None => first = Some(found),
                Some(wanted) if wanted.same(found) => {}
                Some(wanted) => {
                    self.mismatch(item.at, wanted, found);
                    if once {
                        return;
                    }
                }
            }
        }
    }

    /// What can be told of literal arguments without calling.
    fn literal_arguments(&mut self, at: usize, name: &str, member: bool, args: &[Expr]) {
        if let ("format", [Expr { node: Node::Literal(Val::Str(pattern)), .. }, Expr { node: Node::List(items), .. }]) = (name, args) {
            let items: Vec<&Expr> = items.iter().map(|(item, _)| item).collect();
            if let Err((item, message)) = formats::check(pattern, &items) {
                self.wrong(item.map_or(at, |i| items[i].at), message);
            }
            return;
        }
        let Some(Expr { at, node: Node::Literal(val), .. }) = args.get(usize::from(name == "matches" && member)) else { return };
        let fine = match (name, val) {
            ("matches", Val::Str(text)) => crate::pattern::compile(text).is_ok(),
            ("timestamp", Val::Str(text)) => time::parse_timestamp(text).is_some(),
            ("duration", Val::Str(text)) => time::parse_duration(text).is_some(),
            ("duration", Val::Int(_)) => false,
            _ => true,
        };
        if !fine {
            self.wrong(*at, format!("invalid {name} argument"));
        }
    }
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
