//! Expressions as trees.

use super::types::Type;
use super::value::Val;

/// A node, and where in the source it stands (in characters): for calls the operator or parenthesis, as cel-go has it.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub at: usize,
    pub node: Node,
    /// What the checker has found its type to be.
    pub type_: Type,
    /// Its value, where that is known without running it: it costs nothing then.
    pub constant: Option<Box<Val<'static>>>,
    /// How deep the tree below is.
    pub depth: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Val<'static>),
    Ident(String),
    /// `a.b`, `a.?b`
    Select { of: Box<Expr>, field: String, optional: bool },
    /// `has(a.b)`
    Has { of: Box<Expr>, field: String },
    /// `f(a)`, `a.f(b)` (the receiver is the first argument), and operators by cel-go's names: `_+_`. Whether the checker
    /// was sure which overload it is decides what it costs.
    Call { name: String, member: bool, sure: bool, args: Vec<Expr> },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Ternary(Box<[Expr; 3]>),
    /// The flag is whether an absent optional is left out: `[?a]`.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    Struct { name: String, fields: Vec<(String, Expr, bool)> },
    Macro(Box<Macro>),
}

/// A comprehension.
#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub kind: MacroKind,
    pub range: Expr,
    /// The loop's variable; with two, index or key and value.
    pub vars: Vec<String>,
    /// Which items are taken, where the macro has such a thing.
    pub filter: Option<Expr>,
    /// What is judged or made of each.
    pub body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MacroKind {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformMap,
    TransformMapEntry,
    OptMap,
    OptFlatMap,
    SortBy,
    /// `cel.bind(name, value, body)`; the range is the value.
    Bind,
}

impl Expr {
    pub fn new(at: usize, node: Node) -> Self {
        let mut depth = 0;
        each_child(&node, &mut |child| depth = depth.max(child.depth));
        Self { at, node, type_: Type::Dyn, constant: None, depth: depth + 1 }
    }

    /// Whether its value is known without running it.
    pub fn is_constant(&self) -> bool {
        self.constant.is_some() || matches!(self.node, Node::Literal(_))
    }

    /// Whether it is what cel-go calls an attribute: a variable or a choice, and what is selected from it.
    pub fn is_attribute(&self) -> bool {
        match &self.node {
            _ if self.is_constant() => false,
            Node::Call { name, .. } => matches!(name.as_str(), "_[_]" | "_[?_]"),
            node => matches!(node, Node::Ident(_) | Node::Select { .. } | Node::Has { .. } | Node::Ternary(_)),
        }
    }

    /// Whether it is an attribute that begins with a choice: `(a ? b : c).d`.
    pub fn is_choice(&self) -> bool {
        match &self.node {
            Node::Ternary(_) => true,
            Node::Select { of, .. } => of.is_choice(),
            Node::Call { name, args, .. } if matches!(name.as_str(), "_[_]" | "_[?_]") => args.first().is_some_and(Self::is_choice),
            _ => false,
        }
    }

    /// Whether the name occurs as an identifier anywhere below.
    pub fn mentions(&self, name: &str) -> bool {
        if matches!(&self.node, Node::Ident(ident) if ident == name) {
            return true;
        }
        let mut found = false;
        each_child(&self.node, &mut |child| found = found || child.mentions(name));
        found
    }
}

/// Visits what stands directly below: to read it (`iter`), or to change it (`iter_mut`).
macro_rules! each_child {
    ($name:ident, $iter:ident $(, $mut:tt)?) => {
        pub(super) fn $name(node: &$($mut)? Node, f: &mut dyn FnMut(&$($mut)? Expr)) {
            match node {
                Node::Literal(_) | Node::Ident(_) => {}
                Node::Select { of, .. } | Node::Has { of, .. } => f(of),
                Node::Call { args, .. } | Node::And(args) | Node::Or(args) => args.$iter().for_each(f),
                Node::Ternary(parts) => parts.$iter().for_each(f),
                Node::List(items) => items.$iter().for_each(|(item, _)| f(item)),
                Node::Map(entries) => entries.$iter().for_each(|(key, value, _)| [key, value].into_iter().for_each(&mut *f)),
                Node::Struct { fields, .. } => fields.$iter().for_each(|(_, value, _)| f(value)),
                Node::Macro(m) => {
                    f(&$($mut)? m.range);
                    m.filter.$iter().for_each(&mut *f);
                    f(&$($mut)? m.body);
                }
            }
        }
    };
}

each_child!(each_child, iter);
each_child!(each_child_mut, iter_mut, mut);
