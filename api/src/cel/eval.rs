//! Evaluation, with the cost of each step counted as upstream counts it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Macro, MacroKind, Node};
use super::lib::{self, Regexes};
use super::value::{Key, Val};
use super::{Activation, Fault};

pub(super) type Evaluated<'a> = Result<Val<'a>, Fault>;

const LIST: u64 = 10;
const MAP: u64 = 30;
const OBJECT: u64 = 40;

/// One evaluation.
pub(super) struct Evaluator<'e, 'a> {
    pub outside: &'e dyn Activation<'a>,
    pub regexes: &'e Regexes,
    pub cost: u64,
    pub limit: u64,
    pub locals: Vec<(&'e str, Val<'a>)>,
}

fn no_overload<T>() -> Result<T, Fault> {
    Err(Fault::error("no such overload"))
}

impl<'e, 'a> Evaluator<'e, 'a> {
    pub fn spend(&mut self, cost: u64) -> Result<(), Fault> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Fault::TooExpensive) } else { Ok(()) }
    }

    pub fn eval(&mut self, expr: &'e Expr) -> Evaluated<'a> {
        match &expr.node {
            Node::Literal(val) => Ok(val.clone()),
            Node::Ident(name) => self.ident(name),
            Node::Select { of, field, optional } => self.select(of, field, *optional),
            Node::Has { of, field } => self.has(of, field),
            Node::Call { name, args, .. } => self.call(name, args),
            Node::And(terms) => self.logic(terms, false),
            Node::Or(terms) => self.logic(terms, true),
            Node::Ternary(parts) => match self.eval(&parts[0])? {
                Val::Bool(true) => self.eval(&parts[1]),
                Val::Bool(false) => self.eval(&parts[2]),
                _ => no_overload(),
            },
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, fields } => self.construct(name, fields),
            Node::Macro(m) => self.comprehension(m),
        }
    }

    fn ident(&mut self, name: &str) -> Evaluated<'a> {
        self.spend(1)?;
        if let Some((_, val)) = self.locals.iter().rev().find(|(n, _)| *n == name) {
            return Ok(val.clone());
        }
        match self.outside.variable(name) {
            Some(val) => val.map_err(|why| Fault::error(&why)),
            None if name.contains('.') || name.chars().all(|c| c.is_ascii_lowercase() || c == '_') => Ok(Val::Type(name.into())),
            None => Err(Fault::error(&format!("no such attribute(s): {name}"))),
        }
    }

    fn select(&mut self, of: &'e Expr, field: &str, optional: bool) -> Evaluated<'a> {
        // Composed variables are only made when they are asked for.
        if let Node::Ident(name) = &of.node
            && name == "variables"
            && let Some(val) = self.outside.composed(field)
        {
            self.spend(2)?;
            return val.map_err(|why| Fault::error(&why));
        }
        if let Node::Ident(name) = &of.node
            && name == "google"
        {
            return Ok(Val::Type(format!("google.{field}").into()));
        }
        let of = self.eval(of)?;
        self.spend(1)?;
        member(&of, &Val::text(field), optional)
    }

    fn has(&mut self, of: &'e Expr, field: &str) -> Evaluated<'a> {
        let of = match &of.node {
            // Whether a composed variable is there is known without making it.
            Node::Ident(name) if name == "variables" && self.outside.composed(field).is_some() => return Ok(Val::Bool(true)),
            _ => self.eval(of)?,
        };
        let inner = match &of {
            Val::Optional(None) => return Ok(Val::Bool(false)),
            Val::Optional(Some(inner)) => (**inner).clone(),
            other => other.clone(),
        };
        // What has no members at all has none of this name either.
        Ok(Val::Bool(inner.member(&Val::text(field)).flatten().is_some()))
    }

    /// `&&` and `||`: one term that decides outweighs errors in others.
    fn logic(&mut self, terms: &'e [Expr], decisive: bool) -> Evaluated<'a> {
        let mut fault = None;
        for term in terms {
            match self.eval(term) {
                Ok(Val::Bool(b)) if b == decisive => return Ok(Val::Bool(decisive)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => drop(fault.get_or_insert(Fault::error("no such overload"))),
                Err(Fault::TooExpensive) => return Err(Fault::TooExpensive),
                Err(other) => drop(fault.get_or_insert(other)),
            }
        }
        fault.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    fn list(&mut self, items: &'e [(Expr, bool)]) -> Evaluated<'a> {
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            let val = self.eval(item)?;
            list.extend(present(val, *optional)?);
        }
        self.spend(LIST)?;
        Ok(Val::list(list))
    }

    fn map(&mut self, entries: &'e [(Expr, Expr, bool)]) -> Evaluated<'a> {
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let key = key.key().ok_or_else(|| Fault::error(&format!("unsupported key type: {}", key.type_name())))?;
            let value = self.eval(value)?;
            if let Some(value) = present(value, *optional)? {
                insert(&mut map, key, value)?;
            }
        }
        self.spend(MAP)?;
        Ok(Val::Map(Arc::new(map)))
    }

    fn construct(&mut self, name: &str, fields: &'e [(String, Expr, bool)]) -> Evaluated<'a> {
        let mut map = BTreeMap::new();
        for (field, value, optional) in fields {
            let value = self.eval(value)?;
            if let Some(value) = present(value, *optional)? {
                map.insert(Key::Str(field.as_str().into()), value);
            }
        }
        self.spend(OBJECT)?;
        Ok(Val::Object(name.into(), Arc::new(map)))
    }

    fn call(&mut self, name: &str, args: &'e [Expr]) -> Evaluated<'a> {
        // A fallback is only made when it is needed.
        if let ("or" | "orValue", [first, second]) = (name, args) {
            self.spend(1)?;
            return match (name, self.eval(first)?) {
                ("or", some @ Val::Optional(Some(_))) => Ok(some),
                (_, Val::Optional(Some(inner))) => Ok((*inner).clone()),
                (_, Val::Optional(None)) => self.eval(second),
                _ => no_overload(),
            };
        }
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            values.push(self.eval(arg)?);
        }
        match (name, values.as_slice()) {
            ("_[_]", [of, index]) => {
                self.spend(1)?;
                member(of, index, false)
            }
            ("_[?_]", [of, index]) => {
                self.spend(1)?;
                member(of, index, true)
            }
            _ => lib::call(self, name, &values),
        }
    }

    fn comprehension(&mut self, m: &'e Macro) -> Evaluated<'a> {
        let range = self.eval(&m.range)?;
        if matches!(m.kind, MacroKind::OptMap | MacroKind::OptFlatMap) {
            return match range {
                Val::Optional(None) => Ok(Val::Optional(None)),
                Val::Optional(Some(inner)) => {
                    let made = self.with(m, [(*inner).clone(), Val::Null], &m.body)?;
                    Ok(if m.kind == MacroKind::OptMap { made.some() } else { made })
                }
                _ => no_overload(),
            };
        }
        if m.kind == MacroKind::Bind {
            return self.with(m, [range, Val::Null], &m.body);
        }
        let two = m.vars.len() == 2;
        let rounds: Vec<[Val<'a>; 2]> = match (range.items(), range.entries()) {
            (Some(items), _) if two => items.into_iter().enumerate().map(|(i, item)| [Val::Int(i as i64), item]).collect(),
            (Some(items), _) => items.into_iter().map(|item| [item, Val::Null]).collect(),
            (_, Some(entries)) => entries.into_iter().map(|(key, value)| [key, value]).collect(),
            _ => return no_overload(),
        };
        match m.kind {
            MacroKind::All | MacroKind::Exists => self.quantified(m, rounds),
            MacroKind::ExistsOne => {
                let mut count = 0;
                for round in rounds {
                    count += u32::from(self.holds(m, round, &m.body, 2)?.is_some());
                }
                self.spend(2)?;
                Ok(Val::Bool(count == 1))
            }
            MacroKind::Filter => {
                let mut kept = Vec::new();
                for round in rounds {
                    kept.extend(self.holds(m, round, &m.body, 12)?.map(|[item, _]| item));
                }
                Ok(Val::list(kept))
            }
            MacroKind::Map => {
                let mut made = Vec::new();
                for round in rounds {
                    let Some(round) = self.passing(m, round)? else { continue };
                    made.push(self.with(m, round, &m.body)?);
                    self.spend(12)?;
                }
                Ok(Val::list(made))
            }
            MacroKind::SortBy => {
                let mut keyed = Vec::new();
                for round in rounds {
                    let item = round[0].clone();
                    keyed.push((self.with(m, round, &m.body)?, item));
                    self.spend(12)?;
                }
                lib::lists::sort_by_key(keyed)
            }
            _ => {
                let mut map = BTreeMap::new();
                for round in rounds {
                    let Some(round) = self.passing(m, round)? else { continue };
                    let key = round[0].clone();
                    let made = self.with(m, round, &m.body)?;
                    self.spend(2)?;
                    let entries = if m.kind == MacroKind::TransformMap { vec![(key, made)] } else { made.entries().map_or_else(no_overload, Ok)? };
                    for (key, value) in entries {
                        let key = key.key().map_or_else(no_overload, Ok)?;
                        insert(&mut map, key, value)?;
                    }
                }
                Ok(Val::Map(Arc::new(map)))
            }
        }
    }

    fn quantified(&mut self, m: &'e Macro, rounds: Vec<[Val<'a>; 2]>) -> Evaluated<'a> {
        let decisive = m.kind == MacroKind::Exists;
        let mut fault = None;
        for round in rounds {
            self.spend(if decisive { 4 } else { 3 })?;
            match self.with(m, round, &m.body) {
                Ok(Val::Bool(b)) if b == decisive => return Ok(Val::Bool(decisive)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => drop(fault.get_or_insert(Fault::error("no such overload"))),
                Err(Fault::TooExpensive) => return Err(Fault::TooExpensive),
                Err(other) => drop(fault.get_or_insert(other)),
            }
        }
        self.spend(1)?;
        fault.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    /// The round, if the macro's filter takes it.
    fn passing(&mut self, m: &'e Macro, round: [Val<'a>; 2]) -> Result<Option<[Val<'a>; 2]>, Fault> {
        match &m.filter {
            None => Ok(Some(round)),
            Some(filter) => self.holds(m, round, filter, 1),
        }
    }

    /// The round, if the judgement of it is true; that costs `cost` more.
    fn holds(&mut self, m: &'e Macro, round: [Val<'a>; 2], judge: &'e Expr, cost: u64) -> Result<Option<[Val<'a>; 2]>, Fault> {
        let judged = self.with(m, round.clone(), judge)?;
        self.spend(1)?;
        match judged {
            Val::Bool(true) => {
                self.spend(cost)?;
                Ok(Some(round))
            }
            Val::Bool(false) => Ok(None),
            _ => no_overload(),
        }
    }

    /// Evaluates with the loop's variables bound.
    fn with(&mut self, m: &'e Macro, round: [Val<'a>; 2], body: &'e Expr) -> Evaluated<'a> {
        let before = self.locals.len();
        for (name, val) in m.vars.iter().zip(round) {
            self.locals.push((name, val));
        }
        let result = self.eval(body);
        self.locals.truncate(before);
        result
    }
}

/// What stands in a literal; with `?`, what is in the optional.
fn present(val: Val<'_>, optional: bool) -> Result<Option<Val<'_>>, Fault> {
    match (optional, val) {
        (false, val) => Ok(Some(val)),
        (true, Val::Optional(inner)) => Ok(inner.map(|v| (*v).clone())),
        (true, other) => Err(Fault::error(&format!("cannot initialize optional entry from non-optional value {}", other.type_name()))),
    }
}

fn insert<'a>(map: &mut BTreeMap<Key, Val<'a>>, key: Key, value: Val<'a>) -> Result<(), Fault> {
    if map.contains_key(&key) {
        return Err(Fault::error(&format!("Failed with repeated key {}", lib::shown(&key.val()))));
    }
    map.insert(key, value);
    Ok(())
}

/// `of.index`, `of[index]`; `of[?index]` where absence is no error.
fn member<'a>(of: &Val<'a>, index: &Val<'a>, optional: bool) -> Evaluated<'a> {
    match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => return member(inner, index, true),
        _ => {}
    }
    let (found, why) = match of {
        Val::List(_) | Val::JsonList(..) => {
            let number = match index {
                Val::Int(n) => Some(*n),
                Val::Uint(n) => i64::try_from(*n).ok(),
                Val::Double(d) if d.fract() == 0.0 => Some(*d as i64),
                _ => return no_overload(),
            };
            let place = number.and_then(|n| usize::try_from(n).ok());
            let found = match of {
                Val::List(items) => place.and_then(|i| items.get(i)).cloned(),
                Val::JsonList(items, type_, _) => place.and_then(|i| items.get(i)).map(|item| Val::json(item, type_)),
                _ => None,
            };
            (found, format!("index out of bounds: {}", number.unwrap_or(i64::MAX)))
        }
        _ => (of.member(index).flatten(), format!("no such key: {}", lib::shown(index))),
    };
    match (found, optional) {
        (Some(val), true) => Ok(val.some()),
        (None, true) => Ok(Val::Optional(None)),
        (Some(val), false) => Ok(val),
        (None, false) => Err(Fault::error(&why)),
    }
}
