//! What an expression may cost at most, told before it runs: from its types, and from how large what it is given may be.
//! The rules are those of cel-go's checker and of Kubernetes' libraries, to the unit: which definitions are refused is
//! decided by them. That goes for their oddities too, such as where the paths of two fields share memory (`Paths`).

use super::ast::{Expr, Macro, MacroKind};
use super::bounds::Bounds;
use super::functions::{PARAMS, overloads};
use super::types::Type;
use super::unify::Bindings;
use super::value::Val;
use super::{ast, lib};

/// A least and a most: of a size, or of a cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    min: u64,
    max: u64,
}

const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
/// Nothing yet: what the first union replaces.
const NOTHING: Range = Range { min: u64::MAX, max: 0 };
/// What going through a text costs, by its length.
const TEXT: f64 = 0.1;
/// What a regular expression costs, by its length.
const REGEX: f64 = 0.25;
/// The longest name that a format describes, and the length of its regular expression.
const FORMAT: (u64, f64) = (64, 128.0);
const ACCUMULATOR: &str = "@result";

const fn fixed(n: u64) -> Range {
    Range { min: n, max: n }
}

impl Range {
    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        let scale = |n: u64| (n as f64 * factor).ceil() as u64;
        Self { min: scale(self.min), max: scale(self.max) }
    }
}

/// What an expression costs at most, where `bounds` says how large its variables are.
pub(super) fn most(expr: &Expr, bounds: &Bounds) -> u64 {
    let mut tree = Tree::default();
    let root = tree.lower(expr);
    let all = tree.nodes.len();
    let mut estimator = Estimator {
        tree: &tree,
        bounds,
        paths: Paths::default(),
        at: vec![None; all],
        sizes: vec![None; all],
        entries: vec![None; all],
        costs: vec![None; all],
        locals: Vec::new(),
    };
    estimator.cost(root).max
}

type Id = usize;

/// A node of an expression with its macros written out, as costs are reckoned.
enum Node<'a> {
    /// Its size, and its value if that is a whole number.
    Literal(u64, Option<i64>),
    Ident(&'a str),
    /// The flag: only whether it is there.
    Select(Id, &'a str, bool),
    Logic(Vec<Id>),
    /// The flag: whether the first argument is a receiver.
    Call(&'a str, bool, Vec<Id>),
    List(Vec<Id>),
    Map(Vec<(Id, Id)>),
    Struct(Vec<Id>),
    Fold { range: Id, vars: &'a [String], init: Id, condition: Id, step: Id, result: Id },
    /// A name for a value, in the body.
    Bind { var: &'a str, init: Id, body: Id },
}

#[derive(Default)]
struct Tree<'a> {
    nodes: Vec<(Node<'a>, Type)>,
}

impl<'a> Tree<'a> {
    fn add(&mut self, node: Node<'a>, type_: Type) -> Id {
        self.nodes.push((node, type_));
        self.nodes.len() - 1
    }

    fn all(&mut self, exprs: impl IntoIterator<Item = &'a Expr>) -> Vec<Id> {
        exprs.into_iter().map(|e| self.lower(e)).collect()
    }

    fn lower(&mut self, expr: &'a Expr) -> Id {
        let node = match &expr.node {
            ast::Node::Literal(val) => match val {
                Val::Int(n) => Node::Literal(1, Some(*n)),
                Val::Str(_) | Val::Bytes(_) => Node::Literal(val.size().unwrap_or(0) as u64, None),
                _ => Node::Literal(1, None),
            },
            ast::Node::Ident(name) => Node::Ident(name),
            ast::Node::Select { of, field, optional: true } => {
                let field = Node::Literal(field.chars().count() as u64, None);
                let args = vec![self.lower(of), self.add(field, Type::String)];
                Node::Call("_?._", false, args)
            }
            ast::Node::Select { of, field, optional: false } => Node::Select(self.lower(of), field, false),
            ast::Node::Has { of, field } => Node::Select(self.lower(of), field, true),
            ast::Node::Call { name, member, args, .. } => Node::Call(name, *member, self.all(args)),
            ast::Node::And(terms) | ast::Node::Or(terms) => Node::Logic(self.all(terms)),
            ast::Node::Ternary(parts) => Node::Call("_?_:_", false, self.all(&**parts)),
            ast::Node::List(items) => Node::List(self.all(items.iter().map(|(item, _)| item))),
            ast::Node::Map(entries) => Node::Map(entries.iter().map(|(key, value, _)| (self.lower(key), self.lower(value))).collect()),
            ast::Node::Struct { fields, .. } => Node::Struct(self.all(fields.iter().map(|(_, value, _)| value))),
            ast::Node::Macro(m) => self.unfold(m, &expr.type_),
        };
        self.add(node, expr.type_.clone())
    }

    fn call(&mut self, name: &'a str, args: Vec<Id>, type_: Type) -> Id {
        self.add(Node::Call(name, false, args), type_)
    }

    /// What a macro stands for.
    fn unfold(&mut self, m: &'a Macro, type_: &Type) -> Node<'a> {
        let range = self.lower(&m.range);
        let list = matches!(m.kind, MacroKind::Map | MacroKind::Filter);
        let accumulated = match m.kind {
            MacroKind::All | MacroKind::Exists => Type::Bool,
            MacroKind::ExistsOne => Type::Int,
            MacroKind::OptMap | MacroKind::OptFlatMap => return self.optional(m, range, type_),
            MacroKind::SortBy => return self.sort_by(m, range),
            MacroKind::Bind => {
                let body = self.lower(&m.body);
                return Node::Bind { var: &m.vars[0], init: range, body };
            }
            _ => type_.clone(),
        };
        let init = match m.kind {
            _ if list => Node::List(Vec::new()),
            MacroKind::TransformMap | MacroKind::TransformMapEntry => Node::Map(Vec::new()),
            _ => Node::Literal(1, None),
        };
        let init = self.add(init, accumulated.clone());
        let accu = |tree: &mut Self| tree.add(Node::Ident(ACCUMULATOR), accumulated.clone());
        let condition = match m.kind {
            MacroKind::All => vec![accu(self)],
            MacroKind::Exists => {
                let so_far = accu(self);
                vec![self.call("!_", vec![so_far], Type::Bool)]
            }
            _ => Vec::new(),
        };
        let condition = if condition.is_empty() { self.add(Node::Literal(1, None), Type::Bool) } else { self.call("@not_strictly_false", condition, Type::Bool) };
        let so_far = accu(self);
        let body = self.lower(&m.body);
        let (step, test) = match m.kind {
            MacroKind::All | MacroKind::Exists => (self.add(Node::Logic(vec![so_far, body]), Type::Bool), None),
            MacroKind::ExistsOne => {
                let one = self.add(Node::Literal(1, Some(1)), Type::Int);
                (self.call("_+_", vec![so_far, one], Type::Int), Some(body))
            }
            MacroKind::Map | MacroKind::Filter => {
                let filter = m.kind == MacroKind::Filter;
                let item = if filter { self.add(Node::Ident(&m.vars[0]), item_type(&m.range.type_)) } else { body };
                let item = self.add(Node::List(vec![item]), accumulated.clone());
                let test = if filter { Some(body) } else { m.filter.as_ref().map(|f| self.lower(f)) };
                (self.call("_+_", vec![so_far, item], accumulated.clone()), test)
            }
            _ => {
                let mut args = vec![so_far, body];
                if m.kind == MacroKind::TransformMap {
                    args.insert(1, self.add(Node::Ident(&m.vars[0]), Type::Dyn));
                }
                let test = m.filter.as_ref().map(|f| self.lower(f));
                (self.call("cel.@mapInsert", args, accumulated.clone()), test)
            }
        };
        let step = match test {
            None => step,
            Some(test) => {
                let unchanged = accu(self);
                self.call("_?_:_", vec![test, step, unchanged], accumulated.clone())
            }
        };
        let mut result = accu(self);
        if m.kind == MacroKind::ExistsOne {
            let one = self.add(Node::Literal(1, Some(1)), Type::Int);
            result = self.call("_==_", vec![result, one], Type::Bool);
        }
        Node::Fold { range, vars: &m.vars, init, condition, step, result }
    }

    /// `optMap` and `optFlatMap`: what they are called on is reckoned twice.
    fn optional(&mut self, m: &'a Macro, target: Id, type_: &Type) -> Node<'a> {
        let inner = match &m.range.type_ {
            Type::Optional(inner) => (**inner).clone(),
            _ => Type::Dyn,
        };
        let test = self.add(Node::Call("hasValue", true, vec![target]), Type::Bool);
        let init = self.add(Node::Call("value", true, vec![target]), inner);
        let body = self.lower(&m.body);
        let mut made = self.add(Node::Bind { var: &m.vars[0], init, body }, m.body.type_.clone());
        if m.kind == MacroKind::OptMap {
            made = self.call("optional.of", vec![made], type_.clone());
        }
        let none = self.call("optional.none", Vec::new(), type_.clone());
        Node::Call("_?_:_", false, vec![test, made, none])
    }

    /// `sortBy`: a list sorted by another one, which is mapped from it.
    fn sort_by(&mut self, m: &'a Macro, target: Id) -> Node<'a> {
        const INPUT: &str = "@__sortBy_input__";
        let (type_, keys) = (m.range.type_.clone(), Type::list(m.body.type_.clone()));
        let accu = |tree: &mut Self| tree.add(Node::Ident(ACCUMULATOR), keys.clone());
        let range = self.add(Node::Ident(INPUT), type_.clone());
        let init = self.add(Node::List(Vec::new()), keys.clone());
        let condition = self.add(Node::Literal(1, None), Type::Bool);
        let key = self.lower(&m.body);
        let key = self.add(Node::List(vec![key]), keys.clone());
        let so_far = accu(self);
        let step = self.call("_+_", vec![so_far, key], keys.clone());
        let result = accu(self);
        let mapped = self.add(Node::Fold { range, vars: &m.vars, init, condition, step, result }, keys.clone());
        let input = self.add(Node::Ident(INPUT), type_.clone());
        let body = self.add(Node::Call("@sortByAssociatedKeys", true, vec![input, mapped]), type_);
        Node::Bind { var: INPUT, init: target, body }
    }
}

fn item_type(range: &Type) -> Type {
    match range {
        Type::List(item, _) => (**item).clone(),
        Type::Map(key, _) => (**key).clone(),
        _ => Type::Dyn,
    }
}

/// A path from a variable to a part of it: `self`, `spec`, `list`, `@items`. Two paths that go on from the same one may
/// stand in the same memory, so that the later shows through in the earlier: so it is in the original, where they are
/// slices that are appended to, and estimates come out by it.
#[derive(Clone, Copy)]
struct Path {
    store: usize,
    len: usize,
}

#[derive(Default)]
struct Paths<'a> {
    /// The steps, and how many there is room for.
    stores: Vec<(Vec<&'a str>, usize)>,
}

impl<'a> Paths<'a> {
    fn append(&mut self, path: Option<Path>, step: &'a str) -> Path {
        let Some(Path { store, len }) = path else {
            self.stores.push((vec![step], 1));
            return Path { store: self.stores.len() - 1, len: 1 };
        };
        let (steps, room) = &mut self.stores[store];
        if len < *room {
            steps.truncate(len);
            steps.push(step);
            return Path { store, len: len + 1 };
        }
        let mut copy = steps[..len].to_vec();
        copy.push(step);
        self.stores.push((copy, 2 * len));
        Path { store: self.stores.len() - 1, len: len + 1 }
    }

    fn steps(&self, path: Path) -> &[&'a str] {
        let steps = &self.stores[path.store].0;
        &steps[..path.len.min(steps.len())]
    }
}

/// How large the keys and values of a container are.
#[derive(Clone, Copy)]
struct Entry {
    list: bool,
    key: Range,
    value: Range,
}

impl Entry {
    fn union(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (one, other) = (one?, other?);
        Some(Self { list: one.list, key: one.key.union(other.key), value: one.value.union(other.value) })
    }
}

/// A name that the expression itself gives.
#[derive(Clone, Copy)]
struct Local<'a> {
    name: &'a str,
    path: Option<Path>,
    size: Option<Range>,
    entry: Option<Entry>,
}

/// An argument of a call.
struct Arg<'t> {
    id: Id,
    type_: &'t Type,
    path: Option<Path>,
    size: Range,
}

struct Estimator<'t, 'a> {
    tree: &'t Tree<'a>,
    bounds: &'t Bounds,
    paths: Paths<'a>,
    /// Of each node: the path that it is, how large it is and its entries are, and what it costs.
    at: Vec<Option<Path>>,
    sizes: Vec<Option<Range>>,
    entries: Vec<Option<Entry>>,
    costs: Vec<Option<Range>>,
    locals: Vec<Local<'a>>,
}

impl<'t, 'a> Estimator<'t, 'a> {
    fn type_of(&self, id: Id) -> &'t Type {
        let tree = self.tree;
        &tree.nodes[id].1
    }

    fn local(&self, id: Id) -> Option<Local<'a>> {
        let Node::Ident(name) = self.tree.nodes[id].0 else { return None };
        self.locals.iter().rev().find(|l| l.name == name).copied()
    }

    fn path(&self, id: Id) -> Option<Path> {
        self.local(id).map_or(self.at[id], |local| local.path)
    }

    /// How large the bounds say that what a path leads to is.
    fn bound(&self, path: Option<Path>) -> Option<Range> {
        let max = self.bounds.at(self.paths.steps(path?))?;
        Some(Range { min: 0, max })
    }

    fn size(&mut self, id: Id) -> Option<Range> {
        if self.sizes[id].is_some() {
            return self.sizes[id];
        }
        match &self.tree.nodes[id].0 {
            Node::Literal(size, _) => return Some(fixed(*size)),
            Node::List(items) => return Some(fixed(items.len() as u64)),
            Node::Map(entries) => return Some(fixed(entries.len() as u64)),
            _ => {}
        }
        self.sizes[id] = self.bound(self.path(id));
        let scalar = || is_scalar(self.type_of(id)).then_some(fixed(1));
        self.sizes[id].or_else(scalar).or_else(|| self.local(id)?.size)
    }

    fn any_size(&mut self, id: Id) -> Range {
        self.size(id).unwrap_or(UNKNOWN)
    }

    fn entry(&self, id: Id) -> Option<Entry> {
        self.entries[id].or_else(|| self.local(id)?.entry)
    }

    fn cost(&mut self, id: Id) -> Range {
        // Only what a macro has doubled is met twice.
        if let Some(known) = self.costs[id] {
            return known;
        }
        let tree = self.tree;
        let cost = match &tree.nodes[id].0 {
            Node::Literal(..) => fixed(0),
            Node::Ident(name) => {
                self.at[id] = match self.local(id) {
                    Some(local) => local.path,
                    None => Some(self.paths.append(None, name)),
                };
                fixed(1)
            }
            Node::Select(of, _, true) => self.cost(*of),
            Node::Select(of, field, false) => {
                let cost = self.cost(*of);
                let member = matches!(self.type_of(*of), Type::Map(..) | Type::Object(_) | Type::Param(_));
                self.at[id] = Some(self.paths.append(self.path(*of), field));
                cost.plus(fixed(u64::from(member)))
            }
            Node::Logic(terms) => {
                let costs: Vec<Range> = terms.iter().map(|t| self.cost(*t)).collect();
                Range { min: costs.first().map_or(0, |c| c.min), max: costs.iter().fold(0, |sum, c| sum.saturating_add(c.max)) }
            }
            Node::Call(name, member, args) => self.call(id, name, *member, args),
            Node::List(items) => {
                let (mut cost, mut size) = (fixed(10), if items.is_empty() { fixed(0) } else { NOTHING });
                for item in items {
                    cost = cost.plus(self.cost(*item));
                    size = size.union(self.any_size(*item));
                }
                self.entries[id] = Some(Entry { list: true, key: fixed(1), value: size });
                cost
            }
            Node::Map(entries) => {
                let start = if entries.is_empty() { fixed(0) } else { NOTHING };
                let (mut cost, mut keys, mut values) = (fixed(30), start, start);
                for (key, value) in entries {
                    cost = cost.plus(self.cost(*key)).plus(self.cost(*value));
                    keys = keys.union(self.any_size(*key));
                    values = values.union(self.any_size(*value));
                }
                self.entries[id] = Some(Entry { list: false, key: keys, value: values });
                cost
            }
            Node::Struct(fields) => fields.iter().fold(fixed(40), |sum, field| sum.plus(self.cost(*field))),
            Node::Fold { .. } => self.fold(id),
            Node::Bind { var, init, body } => {
                let mut cost = fixed(10).plus(self.cost(*init));
                let local = Local { name: var, path: self.path(*init), size: self.size(*init), entry: self.entry(*init) };
                self.locals.push(local);
                cost = cost.plus(self.cost(*body));
                self.locals.pop();
                self.sizes[id] = self.size(*body);
                self.entries[id] = self.entry(*body);
                cost
            }
        };
        self.costs[id] = Some(cost);
        cost
    }

    fn fold(&mut self, id: Id) -> Range {
        let tree = self.tree;
        let Node::Fold { range, vars, init, condition, step, result } = &tree.nodes[id].0 else { return fixed(0) };
        let mut sum = self.cost(*range).plus(self.cost(*init));
        let before = self.locals.len();
        let accumulated = Local { name: ACCUMULATOR, path: self.path(*init), size: self.size(*init), entry: self.entry(*init) };
        self.locals.push(accumulated);
        let entry = self.entry(*range);
        let list = entry.map_or(matches!(self.type_of(*range), Type::List(..)), |e| e.list);
        let (index, value) = if list { ("@indices", "@items") } else { ("@keys", "@values") };
        let (key_size, value_size) = (entry.map(|e| e.key), entry.map(|e| e.value));
        let steps = match (vars.len(), list) {
            (2, _) => vec![(index, key_size), (value, value_size)],
            (_, true) => vec![(value, value_size)],
            (_, false) => vec![(index, key_size)],
        };
        for (name, (step, size)) in vars.iter().zip(steps) {
            // The range's path is asked for with the variables before it in place.
            let path = self.paths.append(self.path(*range), step);
            self.locals.push(Local { name, path: Some(path), size, entry: None });
        }
        let round = self.cost(*condition);
        let round = self.cost(*step).plus(round);
        self.locals.truncate(before + 1);
        sum = sum.plus(self.cost(*result));
        self.locals.truncate(before);
        let count = self.any_size(*range);
        sum = sum.plus(count.times(round));
        match &tree.nodes[*init].0 {
            Node::Literal(..) => self.sizes[id] = self.size(*init),
            _ => {
                self.sizes[id] = Some(count);
                self.entries[id] = self.entry(*step).or(self.entries[id]);
            }
        }
        sum
    }

    fn call(&mut self, id: Id, name: &'a str, member: bool, ids: &[Id]) -> Range {
        if let ("dyn", [arg]) = (name, ids) {
            let cost = self.cost(*arg).plus(fixed(1));
            self.sizes[id] = self.size(*arg);
            self.entries[id] = self.entry(*arg);
            return cost;
        }
        let mut args = Vec::with_capacity(ids.len());
        let mut sum = fixed(0);
        let mut costs = Vec::with_capacity(ids.len());
        // A receiver comes last.
        for arg in ids.iter().skip(usize::from(member)).chain(ids.iter().take(usize::from(member))) {
            let cost = self.cost(*arg);
            costs.push(cost);
            sum = sum.plus(cost);
            args.push(Arg { id: *arg, type_: self.type_of(*arg), path: self.path(*arg), size: self.any_size(*arg) });
        }
        if member {
            args.rotate_right(1);
        }
        if let ("_?_:_", [_, yes, no]) = (name, args.as_slice()) {
            let size = yes.size.union(no.size);
            self.entries[id] = Entry::union(self.entry(yes.id), self.entry(no.id)).or(self.entries[id]);
            self.sizes[id] = Some(size);
            return costs[0].plus(costs[1].union(costs[2]));
        }
        let types: Vec<Type> = args.iter().map(|a| a.type_.clone()).collect();
        let declared = overloads(name).unwrap_or(&[]).iter().filter(|o| o.member == member && o.args.len() == types.len());
        let fits = |wanted: &[Type]| Bindings::of(PARAMS).all_fit(types.iter().zip(wanted));
        let mut ways: Vec<&[Type]> = declared.map(|o| o.args.as_slice()).filter(|wanted| fits(wanted)).collect();
        if ways.is_empty() {
            ways.push(&types);
        }
        let (mut cost, mut size) = (NOTHING, None);
        for way in ways {
            let (price, result) = self.price(id, name, member, way, &args);
            cost = cost.union(price);
            size = match (size, result) {
                (Some(one), Some(other)) => Some(Range::union(one, other)),
                (one, other) => one.or(other),
            };
            if name == "_[_]"
                && let Some(step) = match way.first() {
                    Some(Type::List(..)) => Some("@items"),
                    Some(Type::Map(..)) => Some("@values"),
                    _ => None,
                }
            {
                size = self.entry(args[0].id).map(|e| e.value);
                self.at[id] = Some(self.paths.append(self.path(args[0].id), step));
            }
            size = size.or_else(|| self.size(id));
        }
        self.sizes[id] = size.or(self.sizes[id]);
        sum.plus(cost)
    }

    /// What one overload of a function costs beside its arguments, and how large what it makes is, where that is known.
    fn price(&mut self, id: Id, name: &str, member: bool, way: &[Type], args: &[Arg<'t>]) -> (Range, Option<Range>) {
        let tree = self.tree;
        let size = |i: usize| args.get(i).map_or(UNKNOWN, |a| a.size);
        let literal = |i: usize| args.get(i).and_then(|a| if let Node::Literal(_, n) = tree.nodes[a.id].0 { n } else { None });
        let number = |i: usize, default: u64| literal(i).map_or(default, |n| u64::try_from(n).unwrap_or(0));
        let listed = |factor: f64, size: Range| (size.scaled(factor).plus(fixed(11)), Some(size));
        let matching = |text: Range, regex: Range| text.plus(fixed(1)).scaled(TEXT).times(regex.scaled(REGEX));
        let costs = |cost: Range| (cost, None);
        let is_text = |t: &Type| matches!(t, Type::String | Type::Bytes);
        let items_are_text = |t: Option<&Type>| matches!(t, Some(Type::List(item, _)) if is_text(item));
        let one = costs(fixed(1));
        match (name, way) {
            ("slice", _) => listed(1.0, fixed(number(2, size(0).max).wrapping_sub(number(1, 0)))),
            ("flatten", _) => listed(if args.len() == 2 { number(1, u64::MAX) as f64 } else { 1.0 }, size(0)),
            ("lists.range", _) => listed(1.0, fixed(number(0, u64::MAX))),
            ("reverse", _) => listed(1.0, size(0)),
            ("distinct", _) => listed(2.0, size(0).times(size(0))),
            ("sort", _) => listed(if items_are_text(way.first()) { 2.0 + TEXT } else { 2.0 }, size(0).times(size(0))),
            ("@sortByAssociatedKeys", _) => listed(if items_are_text(way.get(1)) { 2.0 + TEXT } else { 2.0 }, size(1).times(size(1))),
            ("sets.contains" | "sets.intersects", _) => costs(size(0).times(size(1)).plus(fixed(1))),
            ("sets.equivalent", _) => costs(size(0).times(size(1)).scaled(2.0).plus(fixed(1))),
            ("check", _) => costs(fixed(lib::CHECK)),
            ("fieldSelector" | "labelSelector", _) => costs(fixed(10).plus(size(1).scaled(TEXT)).plus(size(1).scaled(0.5).scaled(50.0))),
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", _) => match args.first().map(|a| a.type_) {
                Some(Type::List(item, _)) => {
                    let each = if is_text(item) { fixed(1).plus(self.item_size(&args[0]).scaled(TEXT)) } else { fixed(1) };
                    costs(size(0).times(each))
                }
                _ => costs(size(0).scaled(TEXT)),
            },
            ("url" | "jsonpatch.escapeKey" | "lowerAscii" | "upperAscii" | "substring" | "trim", _) => (size(0).scaled(TEXT), Some(size(0))),
            ("replace", _) => (size(0).scaled(2.0 * TEXT), Some(replaced(size(0), size(1), size(2)))),
            ("split", _) => (size(0).scaled(2.0 * TEXT), Some(Range { min: 0, max: literal(2).map_or(size(0).max, |n| n as u64) })),
            ("join", _) => {
                let list = size(0);
                let mut made = if matches!(args[0].type_, Type::List(..)) { list.times(self.item_size(&args[0])) } else { fixed(0) };
                if args.len() > 1 {
                    let between = Range { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
                    made = made.plus(size(1).times(between));
                }
                (made.scaled(TEXT), Some(made))
            }
            ("find" | "findAll", _) => (matching(size(0), size(1)), Some(Range { min: 0, max: size(0).max })),
            ("ip", [Type::Opaque(_)]) => one,
            ("cidr" | "ip" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver", _) => costs(size(0).scaled(TEXT)),
            ("ip.isCanonical", _) => costs(size(0).scaled(2.0 * TEXT)),
            ("containsIP" | "containsCIDR", _) => {
                let address = Range { min: 4, max: 16 };
                let mut cost = address.plus(address).scaled(TEXT);
                if name == "containsCIDR" {
                    cost = cost.plus(address.scaled(TEXT)).plus(fixed(1));
                }
                if matches!(way.get(1), Some(Type::String)) {
                    cost = cost.plus(size(1).scaled(TEXT));
                }
                costs(cost)
            }
            ("validate", _) => costs(size(1).scaled(TEXT).scaled(FORMAT.1 * REGEX)),
            ("_==_", _) if matches!(args[0].type_, Type::Opaque(_)) && args[0].type_ == args[1].type_ => match args[0].type_ {
                Type::Opaque("kubernetes.NamedFormat") => costs(Range { min: 1, max: FORMAT.0 }.scaled(TEXT)),
                Type::Opaque("kubernetes.URL") => {
                    let known = self.size(args[1].id);
                    costs(Range { min: 1, max: known.map_or(1, |size| size.max) }.scaled(TEXT))
                }
                _ => one,
            },
            ("format", _) => costs(size(0).scaled(TEXT)),
            ("bytes", [Type::String]) => (size(0).scaled(TEXT), Some(Range { max: size(0).max.wrapping_mul(4), ..size(0) })),
            ("string", [Type::Bytes]) => (size(0).scaled(TEXT), Some(Range { min: size(0).min / 4, ..size(0) })),
            ("strings.quote", _) => (size(0).scaled(TEXT), Some(Range { min: size(0).min.wrapping_add(2), max: size(0).max.wrapping_mul(2).wrapping_add(2) })),
            ("startsWith" | "endsWith", _) => costs(size(1).scaled(TEXT)),
            ("@in", [_, Type::List(..)]) => costs(size(1)),
            ("matches", _) if member => costs(matching(size(0), size(1))),
            ("contains", _) => costs(size(0).scaled(TEXT).times(size(1).scaled(TEXT))),
            ("_+_", [Type::String | Type::Bytes | Type::List(..), _]) => {
                let made = size(0).plus(size(1));
                self.entries[id] = Entry::union(self.entry(args[0].id), self.entry(args[1].id)).or(self.entries[id]);
                let cost = if matches!(way[0], Type::List(..)) { fixed(1) } else { made.scaled(TEXT) };
                (cost, Some(made))
            }
            ("_==_" | "_!=_", _) | ("_<_" | "_<=_" | "_>_" | "_>=_", [Type::String | Type::Bytes, _]) => {
                let max = size(0).max.min(size(1).max);
                costs(Range { min: u64::from(max > 0), max }.scaled(TEXT))
            }
            _ => one,
        }
    }

    /// How large the items of a list are.
    fn item_size(&self, list: &Arg<'_>) -> Range {
        let Some(path) = list.path else { return UNKNOWN };
        let steps: Vec<&str> = self.paths.steps(path).iter().copied().chain(["@items"]).collect();
        self.bounds.at(&steps).map_or(UNKNOWN, |max| Range { min: 0, max })
    }
}

/// Whether values of the type are all of one size.
fn is_scalar(type_: &Type) -> bool {
    match type_ {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}

/// How large a text is in which every `from` has become a `to`.
fn replaced(text: Range, from: Range, to: Range) -> Range {
    let share = |whole: u64, part: u64| (whole as f64 / part as f64).ceil() as u64;
    // Between all characters; nowhere, so that nothing grows; or as often as the text can hold.
    let (most, kept_most) = match () {
        () if from.min == 0 => (text.max.saturating_add(1), text.max),
        () if to.max <= from.min => (0, text.max),
        () => (share(text.max, from.min), 0),
    };
    let (least, kept_least) = match () {
        () if from.max == 0 => (text.min.saturating_add(1), text.min),
        () if from.max <= to.min => (0, text.min),
        () => (share(text.min, from.max), 0),
    };
    Range { min: least, max: most }.times(to).plus(Range { min: kept_least, max: kept_most })
}
