//! Which types fit each other, and what unknown ones come to be on the way: cel-go's rules.

use super::types::Type;

/// How many steps a check may take: types can hold others many times over.
const MAX_STEPS: usize = 2_000_000;
/// How large one type may become.
const MAX_SIZE: usize = 1_000;

/// What the unknown types (`Type::Param`) of an expression have come to be.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    bound: Vec<Option<Type>>,
    /// What was bound before, so that a try that fails leaves nothing behind.
    trail: Vec<(usize, Option<Type>)>,
    steps: usize,
}

impl Bindings {
    /// Bindings of that many unknown types: the parameters of a signature.
    pub fn of(params: usize) -> Self {
        Self { bound: vec![None; params], ..Self::default() }
    }

    /// A new unknown type.
    pub fn fresh(&mut self) -> Type {
        self.bound.push(None);
        Type::Param(self.bound.len() as u32 - 1)
    }

    /// How many unknown types there are.
    pub fn count(&self) -> u32 {
        self.bound.len() as u32
    }

    /// Whether the types were too much to be checked in time.
    pub fn exhausted(&self) -> bool {
        self.steps > MAX_STEPS
    }

    /// Whether each value can stand where the other is wanted. Only if all can is anything bound.
    pub fn all_fit<'t>(&mut self, pairs: impl IntoIterator<Item = (&'t Type, &'t Type)>) -> bool {
        let start = self.trail.len();
        let fit = pairs.into_iter().all(|(found, wanted)| self.unify(found, wanted));
        while !fit && self.trail.len() > start {
            if let Some((i, before)) = self.trail.pop() {
                self.bound[i] = before;
            }
        }
        fit
    }

    /// The same for one value.
    pub fn fits(&mut self, found: &Type, wanted: &Type) -> bool {
        self.all_fit([(found, wanted)])
    }

    fn bind(&mut self, param: u32, type_: Type) {
        let i = param as usize;
        self.trail.push((i, self.bound[i].take()));
        self.bound[i] = Some(type_);
    }

    fn value(&self, param: u32) -> Option<Type> {
        self.bound.get(param as usize).cloned().flatten()
    }

    fn unify(&mut self, found: &Type, wanted: &Type) -> bool {
        self.steps += 1;
        if self.exhausted() {
            return true;
        }
        if let Type::Param(param) = wanted {
            match self.substitute(found, *param) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Param(param) = found {
            return self.substitute(wanted, *param).0;
        }
        match (found, wanted) {
            (a, b) if a.is_dyn() || b.is_dyn() => true,
            (Type::Null, other) | (other, Type::Null) => {
                matches!(other, Type::Null | Type::Opaque(_) | Type::Optional(_) | Type::Object(_) | Type::Duration | Type::Timestamp)
            }
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a, _), Type::List(b, _)) | (Type::Optional(a), Type::Optional(b)) => self.unify(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.unify(ak, bk) && self.unify(av, bv),
            (a, b) => a.same(b),
        }
    }

    /// Whether the type can be what the parameter is, and whether that is something already.
    fn substitute(&mut self, type_: &Type, param: u32) -> (bool, bool) {
        if matches!(type_, Type::Param(p) if *p == param) {
            return (true, true);
        }
        let Some(known) = self.value(param) else {
            let free = self.is_free_in(param, type_);
            if free {
                self.bind(param, type_.clone());
            }
            return (free, false);
        };
        if type_.same(&known) {
            return (true, true);
        }
        if !self.unify(type_, &known) {
            return (false, true);
        }
        let general = if less_specific(type_, &known) { type_.clone() } else { known };
        if self.is_free_in(param, &general) {
            self.bind(param, general);
        }
        (true, true)
    }

    /// Whether the parameter doesn't occur in the type.
    fn is_free_in(&mut self, param: u32, type_: &Type) -> bool {
        self.steps += 1;
        if self.exhausted() {
            return true;
        }
        match type_ {
            Type::Param(p) if *p == param => false,
            Type::Param(p) => self.value(*p).is_none_or(|known| self.is_free_in(param, &known)),
            Type::List(item, _) | Type::Optional(item) | Type::Type(item) => self.is_free_in(param, item),
            Type::Map(key, value) => self.is_free_in(param, key) && self.is_free_in(param, value),
            _ => true,
        }
    }

    /// The type with what is known put in. What isn't known becomes dyn, if that is the end of it.
    pub fn resolve(&mut self, type_: &Type, end: bool) -> Type {
        self.steps += 1;
        if self.exhausted() {
            return Type::Dyn;
        }
        match type_ {
            Type::Param(p) => match self.value(*p) {
                Some(known) => self.resolve(&known, end),
                None if end => Type::Dyn,
                None => type_.clone(),
            },
            Type::List(item, kind) => Type::List(self.resolve(item, end).into(), kind.clone()),
            Type::Optional(inner) => Type::Optional(self.resolve(inner, end).into()),
            Type::Type(inner) => Type::Type(self.resolve(inner, end).into()),
            Type::Map(key, value) => Type::map(self.resolve(key, end), self.resolve(value, end)),
            other => other.clone(),
        }
    }

    /// Whether the type is of a size that can be worked with.
    pub fn is_small(&self, type_: &Type) -> bool {
        fn count(bindings: &Bindings, type_: &Type, left: &mut usize) {
            *left = left.saturating_sub(1);
            match type_ {
                _ if *left == 0 => {}
                Type::Param(p) => bindings.bound.get(*p as usize).into_iter().flatten().for_each(|known| count(bindings, known, left)),
                Type::List(item, _) | Type::Optional(item) | Type::Type(item) => count(bindings, item, left),
                Type::Map(key, value) => {
                    count(bindings, key, left);
                    count(bindings, value, left);
                }
                _ => {}
            }
        }
        let mut left = MAX_SIZE;
        count(self, type_, &mut left);
        left > 0
    }
}

/// Whether the one is as general as the other, or more so.
pub(super) fn less_specific(one: &Type, other: &Type) -> bool {
    match (one, other) {
        (a, _) if a.is_dyn() || matches!(a, Type::Param(_)) => true,
        (_, b) if b.is_dyn() || matches!(b, Type::Param(_)) => false,
        (Type::List(a, _), Type::List(b, _)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => less_specific(ak, bk) && less_specific(av, bv),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a.same(b),
    }
}
