//! Evaluation, with the cost of each step counted as upstream counts it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Macro, MacroKind, Node};
use super::lib::{self, Regexes, no_overload};
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

/// Conversions, which of a literal are made when the expression is compiled.
pub(super) const CONVERSIONS: [&str; 10] = ["bool", "bytes", "double", "dyn", "duration", "int", "string", "timestamp", "type", "uint"];

/// Puts the value of what needs nothing from outside where it stands, as cel-go's planner does.
pub(super) fn fold(expr: &mut Expr) {
    if let Node::Call { name, sure: true, args, .. } = &mut expr.node
        && let ("@in", [_, list]) = (name.as_str(), args.as_mut_slice())
        && let Some(set) = list.constant.as_deref().and_then(Val::items).and_then(|items| items.iter().map(|i| Some((exact_key(i)?, Val::Null))).collect())
    {
        list.constant = Some(Box::new(Val::Map(Arc::new(set))));
    }
    let known = match &expr.node {
        Node::List(items) => items.iter().all(|(item, optional)| item.is_constant() && !optional),
        Node::Map(entries) => entries.iter().all(|(key, value, optional)| key.is_constant() && value.is_constant() && !optional),
        Node::Call { name, args, .. } => match args.as_slice() {
            [arg] => arg.is_constant() && CONVERSIONS.contains(&name.as_str()),
            [_, Expr { node: Node::List(items), .. }] if name == "@in" && items.is_empty() => {
                expr.constant = Some(Box::new(Val::Bool(false)));
                return;
            }
            _ => false,
        },
        _ => false,
    };
    if known && let Ok(val) = alone(expr) {
        expr.constant = Some(Box::new(val));
    }
}

/// The value of an expression that needs nothing from outside.
pub(super) fn alone(expr: &Expr) -> Evaluated<'static> {
    let (nothing, regexes): (&[(&str, Val<'_>)], _) = (&[], Regexes::default());
    Evaluator { outside: &nothing, regexes: &regexes, cost: 0, limit: u64::MAX, locals: Vec::new() }.eval(expr)
}

impl<'e, 'a> Evaluator<'e, 'a> {
    pub fn spend(&mut self, cost: u64) -> Result<(), Fault> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Fault::TooExpensive) } else { Ok(()) }
    }

    pub fn eval(&mut self, expr: &'e Expr) -> Evaluated<'a> {
        self.at_base(expr, 1)
    }

    /// Evaluates. What is an attribute costs `base`, and one for each step of it.
    fn at_base(&mut self, expr: &'e Expr, base: u64) -> Evaluated<'a> {
        if let Some(val) = &expr.constant {
            return Ok((**val).clone());
        }
        match &expr.node {
            Node::Literal(val) => Ok(val.clone()),
            Node::Ident(name) => {
                self.spend(base)?;
                self.ident(name)
            }
            Node::Select { of, field, optional } => self.select(of, field, *optional, base),
            Node::Has { of, field } => self.has(of, field),
            Node::Call { name, args, .. } if matches!(name.as_str(), "_[_]" | "_[?_]") => match args.as_slice() {
                [of, index] => self.index(of, index, name == "_[?_]", base),
                _ => no_overload(),
            },
            // The function is known by another name than the method.
            Node::Call { name, member, sure, args } => self.call(name, *sure && (*member || name != "matches"), args),
            Node::And(terms) => self.logic(terms, false),
            Node::Or(terms) => self.logic(terms, true),
            // What is chosen is only resolved: variables cost nothing.
            Node::Ternary(parts) => match self.eval(&parts[0])? {
                Val::Bool(true) => self.at_base(&parts[1], 0),
                Val::Bool(false) => self.at_base(&parts[2], 0),
                _ => no_overload(),
            },
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, fields } => self.construct(name, fields),
            Node::Macro(m) => self.comprehension(m),
        }
    }

    fn ident(&mut self, name: &str) -> Evaluated<'a> {
        if let Some((_, val)) = self.locals.iter().rev().find(|(n, _)| *n == name) {
            return Ok(val.clone());
        }
        match self.outside.variable(name) {
            Some(val) => val.map_err(|why| Fault::error(&why)),
            None => Err(Fault::error(&format!("no such attribute(s): {name}"))),
        }
    }

    /// What something is selected from: an attribute goes on, anything else begins one.
    fn selected(&mut self, of: &'e Expr, base: u64) -> Evaluated<'a> {
        if of.is_attribute() {
            return self.at_base(of, base);
        }
        let val = self.eval(of)?;
        self.spend(base)?;
        Ok(val)
    }

    /// A step of an attribute. Where there is nothing to go on from, or optionally to go to, it costs nothing.
    fn step(&mut self, of: &Val<'a>, index: &Val<'a>, optional: bool) -> Evaluated<'a> {
        let found = member(of, index, optional);
        self.spend(u64::from(!matches!(found, Ok(Val::Optional(None)))))?;
        found
    }

    fn select(&mut self, of: &'e Expr, field: &str, optional: bool, base: u64) -> Evaluated<'a> {
        // Composed variables are only made when they are asked for.
        if let Node::Ident(name) = &of.node
            && name == "variables"
            && let Some(val) = self.outside.composed(field)
        {
            self.spend(base + 1)?;
            return val.map_err(|why| Fault::error(&why));
        }
        let of = self.selected(of, base)?;
        self.step(&of, &Val::text(field), optional)
    }

    fn index(&mut self, of: &'e Expr, index: &'e Expr, optional: bool, base: u64) -> Evaluated<'a> {
        let of = self.selected(of, base)?;
        if index.is_constant() {
            let index = self.eval(index)?;
            return self.step(&of, &index, optional);
        }
        // What is computed costs itself; if it is no attribute, it becomes one.
        let index = self.selected(index, 1)?;
        member(&of, &index, optional)
    }

    fn has(&mut self, of: &'e Expr, field: &str) -> Evaluated<'a> {
        let choice = of.is_choice();
        let of = match &of.node {
            // Whether a composed variable is there is known without making it.
            Node::Ident(name) if name == "variables" && self.outside.composed(field).is_some() => {
                self.spend(1)?;
                return Ok(Val::Bool(true));
            }
            _ => self.selected(of, 0)?,
        };
        // (A choice costs nothing itself, and is counted as less than that here.)
        self.spend(u64::from(!matches!(of, Val::Optional(None)) && !choice))?;
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
        let made: Result<Vec<_>, Fault> = items.iter().map(|(item, optional)| present(self.eval(item)?, *optional)).collect();
        self.spend(LIST)?;
        Ok(Val::list(made?.into_iter().flatten().collect()))
    }

    fn map(&mut self, entries: &'e [(Expr, Expr, bool)]) -> Evaluated<'a> {
        let mut map = BTreeMap::new();
        let made = entries.iter().try_for_each(|(key, value, optional)| {
            let key = self.eval(key)?;
            let key = key.key().ok_or_else(|| Fault::error(&format!("unsupported key type: {}", key.type_name())))?;
            let value = self.eval(value)?;
            present(value, *optional)?.map_or(Ok(()), |value| insert(&mut map, key, value))
        });
        self.spend(MAP)?;
        made.map(|()| Val::Map(Arc::new(map)))
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

    fn call(&mut self, name: &str, sure: bool, args: &'e [Expr]) -> Evaluated<'a> {
        // A fallback is only made when it is needed.
        if let ("or" | "orValue", [first, second]) = (name, args) {
            return match (name, self.eval(first)?) {
                ("or", some @ Val::Optional(Some(_))) => Ok(some),
                (_, Val::Optional(Some(inner))) => Ok((*inner).clone()),
                (_, Val::Optional(None)) => self.eval(second),
                _ => no_overload(),
            };
        }
        let mut values = Vec::with_capacity(args.len());
        let mut fault = None;
        for (i, arg) in args.iter().enumerate() {
            match self.eval(arg) {
                Ok(val) => values.push(val),
                Err(Fault::TooExpensive) => return Err(Fault::TooExpensive),
                // Calls with more than two arguments aren't made when one is missing.
                Err(other) if args.len() > 2 && i + 1 < args.len() => return Err(fault.unwrap_or(other)),
                Err(other) => {
                    fault.get_or_insert(other);
                    values.push(Val::Null);
                }
            }
        }
        // Looking something up in a list that doesn't change is free.
        if let ("@in", true, [_, list]) = (name, sure, args)
            && list.constant.as_deref().is_some_and(|list| matches!(list, Val::Map(_)) || list.items().is_some_and(|items| items.iter().all(is_primitive)))
            && matches!(list.node, Node::List(_))
        {
            return fault.map_or_else(|| lib::operators(name, &values).unwrap_or_else(no_overload), Err);
        }
        match fault {
            Some(fault) => {
                self.spend(lib::cost(name, sure, &values))?;
                Err(fault)
            }
            None => lib::call(self, name, sure, &values),
        }
    }

    fn comprehension(&mut self, m: &'e Macro) -> Evaluated<'a> {
        let start = self.cost;
        let range = self.eval(&m.range)?;
        let value_cost = self.cost - start;
        if matches!(m.kind, MacroKind::OptMap | MacroKind::OptFlatMap) {
            self.spend(1)?;
            return match range {
                Val::Optional(None) => {
                    self.spend(1)?;
                    Ok(Val::Optional(None))
                }
                Val::Optional(Some(inner)) => {
                    // The value is looked up again, if it is used.
                    if m.body.mentions(&m.vars[0]) {
                        self.spend(value_cost.saturating_add(1))?;
                    }
                    let made = self.with(m, [(*inner).clone(), Val::Null], &m.body)?;
                    if m.kind == MacroKind::OptFlatMap {
                        return Ok(made);
                    }
                    self.spend(1)?;
                    Ok(made.some())
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
        // A list with one item that is added to what there is so far.
        let added = if m.body.is_constant() { 2 } else { 12 };
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
                    kept.extend(self.holds(m, round, &m.body, 13)?.map(|[item, _]| item));
                }
                self.spend(1)?;
                Ok(Val::list(kept))
            }
            MacroKind::Map => {
                let mut made = Vec::new();
                for round in rounds {
                    let Some(round) = self.passing(m, round)? else { continue };
                    made.push(self.with(m, round, &m.body)?);
                    self.spend(added)?;
                }
                self.spend(1)?;
                Ok(Val::list(made))
            }
            MacroKind::SortBy => {
                let mut keyed = Vec::new();
                for round in rounds {
                    let item = round[0].clone();
                    keyed.push((self.with(m, round, &m.body)?, item));
                    self.spend(added)?;
                }
                // The list by its name, twice, and the list of keys.
                self.spend(lib::self_compare(keyed.iter().map(|(key, _)| key)).saturating_add(3))?;
                lib::lists::sort_by_key(keyed)
            }
            _ => {
                let entry = m.kind == MacroKind::TransformMapEntry;
                let mut map = BTreeMap::new();
                for round in rounds {
                    let Some(round) = self.passing(m, round)? else { continue };
                    let key = round[0].clone();
                    let made = self.with(m, round, &m.body)?;
                    self.spend(if entry { 2 } else { 3 })?;
                    let entries = if entry { made.entries().map_or_else(no_overload, Ok)? } else { vec![(key, made)] };
                    for (key, value) in entries {
                        let key = key.key().map_or_else(no_overload, Ok)?;
                        insert(&mut map, key, value)?;
                    }
                }
                self.spend(1)?;
                Ok(Val::Map(Arc::new(map)))
            }
        }
    }

    fn quantified(&mut self, m: &'e Macro, rounds: Vec<[Val<'a>; 2]>) -> Evaluated<'a> {
        let decisive = m.kind == MacroKind::Exists;
        let mut answer = Ok(Val::Bool(!decisive));
        for round in rounds {
            // Whether to go on is asked before each round; then what there is so far comes first.
            self.spend(if decisive { 3 } else { 2 })?;
            if matches!(answer, Ok(Val::Bool(b)) if b == decisive) {
                break;
            }
            self.spend(1)?;
            match self.with(m, round, &m.body) {
                Ok(Val::Bool(b)) if b == decisive => answer = Ok(Val::Bool(decisive)),
                Ok(Val::Bool(_)) => {}
                Err(Fault::TooExpensive) => return Err(Fault::TooExpensive),
                Ok(_) if answer.is_ok() => answer = Err(Fault::error("no such overload")),
                Err(other) if answer.is_ok() => answer = Err(other),
                Ok(_) | Err(_) => {}
            }
        }
        self.spend(1)?;
        answer
    }

    /// The round, if the macro's filter takes it.
    fn passing(&mut self, m: &'e Macro, round: [Val<'a>; 2]) -> Result<Option<[Val<'a>; 2]>, Fault> {
        match &m.filter {
            None => Ok(Some(round)),
            Some(filter) => self.holds(m, round, filter, 0),
        }
    }

    /// The round, if the judgement of it is true; that costs `cost` more.
    fn holds(&mut self, m: &'e Macro, round: [Val<'a>; 2], judge: &'e Expr, cost: u64) -> Result<Option<[Val<'a>; 2]>, Fault> {
        match self.with(m, round.clone(), judge)? {
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

/// A value as a member of a set; numbers with a point are none.
fn exact_key(val: &Val<'_>) -> Option<Key> {
    if matches!(val, Val::Double(_)) { None } else { val.key() }
}

/// Whether a value is one of those that sets are made of.
fn is_primitive(val: &Val<'_>) -> bool {
    matches!(val, Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Str(_))
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
