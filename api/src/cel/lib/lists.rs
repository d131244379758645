//! Lists and sets.

use std::cmp::Ordering;

use super::super::eval::Evaluated;
use super::super::value::Val;
use super::{bool, fault, no_overload};

/// How many items `lists.range` makes at most.
const MAX_RANGE: i64 = 1_000_000;

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    if let ("lists.range", [Val::Int(n)]) = (name, args) {
        return Some(if *n > MAX_RANGE { fault("lists.range: too many items") } else { Ok(Val::list((0..*n).map(Val::Int).collect())) });
    }
    let items = args.first()?.items()?;
    let at = |found: Option<usize>| Some(Ok(Val::Int(found.map_or(-1, |i| i as i64))));
    let optional = |item: Option<&Val<'a>>| Some(Ok(item.cloned().map_or(Val::Optional(None), Val::some)));
    match (name, &args[1..]) {
        ("isSorted", []) => {
            let orders: Option<Vec<Ordering>> = items.windows(2).map(|w| w[0].compare(&w[1])).collect();
            Some(orders.map_or_else(no_overload, |orders| Ok(Val::Bool(orders.iter().all(|o| *o != Ordering::Greater)))))
        }
        ("sum", []) => Some(sum(&items)),
        ("min" | "max", []) => Some(extreme(name, &items)),
        ("indexOf", [wanted]) => at(items.iter().position(|i| i.equals(wanted))),
        ("lastIndexOf", [wanted]) => at(items.iter().rposition(|i| i.equals(wanted))),
        ("slice", [Val::Int(start), Val::Int(end)]) => Some(slice(&items, *start, *end)),
        ("flatten", []) => Some(Ok(Val::list(flatten(items, 1)))),
        ("flatten", [Val::Int(depth)]) => Some(if *depth < 0 { fault("level must be non-negative") } else { Ok(Val::list(flatten(items, *depth))) }),
        ("distinct", []) => {
            let mut kept: Vec<Val<'a>> = Vec::new();
            for item in items {
                if !kept.iter().any(|k| k.equals(&item)) {
                    kept.push(item);
                }
            }
            Some(Ok(Val::list(kept)))
        }
        ("reverse", []) => Some(Ok(Val::list(items.into_iter().rev().collect()))),
        ("sort", []) => Some(sort_by_key(items.into_iter().map(|i| (i.clone(), i)).collect())),
        ("first", []) => optional(items.first()),
        ("last", []) => optional(items.last()),
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [other]) => {
            let others = other.items()?;
            let has = |all: &[Val<'a>], one: &Val<'a>| all.iter().any(|i| i.equals(one));
            bool(match name {
                "sets.contains" => others.iter().all(|o| has(&items, o)),
                "sets.equivalent" => others.iter().all(|o| has(&items, o)) && items.iter().all(|i| has(&others, i)),
                _ => others.iter().any(|o| has(&items, o)),
            })
        }
        _ => None,
    }
}

fn sum<'a>(items: &[Val<'a>]) -> Evaluated<'a> {
    let Some((first, rest)) = items.split_first() else { return Ok(Val::Int(0)) };
    rest.iter().try_fold(first.clone(), |sum, item| super::operators("_+_", &[sum, item.clone()]).unwrap_or_else(no_overload))
}

fn extreme<'a>(name: &str, items: &[Val<'a>]) -> Evaluated<'a> {
    let Some((first, rest)) = items.split_first() else { return fault(format!("{name} called on empty list")) };
    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
    rest.iter().try_fold(first.clone(), |best, item| match item.compare(&best) {
        Some(order) => Ok(if order == wanted { item.clone() } else { best }),
        None => no_overload(),
    })
}

fn slice<'a>(items: &[Val<'a>], start: i64, end: i64) -> Evaluated<'a> {
    let length = items.len();
    let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(end)) else {
        return fault(format!("cannot slice({start}, {end}), negative indexes not supported"));
    };
    if from > to {
        return fault(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
    }
    items.get(from..to).map_or_else(|| fault(format!("cannot slice({start}, {end}), list is length {length}")), |part| Ok(Val::list(part.to_vec())))
}

fn flatten(items: Vec<Val<'_>>, depth: i64) -> Vec<Val<'_>> {
    let mut flat = Vec::new();
    for item in items {
        match item.items() {
            Some(inner) if depth > 0 => flat.extend(flatten(inner, depth - 1)),
            _ => flat.push(item),
        }
    }
    flat
}

/// The items in the order of their keys.
pub(in super::super) fn sort_by_key<'a>(mut keyed: Vec<(Val<'a>, Val<'a>)>) -> Evaluated<'a> {
    if let Some((first, _)) = keyed.first() {
        if first.compare(first).is_none() {
            return fault("list elements must be comparable");
        }
        if keyed.iter().any(|(key, _)| key.type_name() != first.type_name()) {
            return fault("list elements must have the same type");
        }
    }
    keyed.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(Val::list(keyed.into_iter().map(|(_, item)| item).collect()))
}
