//! Property names as expressions write them: upstream's escaping.

/// Words that are not names in expressions.
const KEYWORDS: [&str; 21] = [
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
    "namespace", "return", "var", "void", "while",
];

/// The field of an object that an expression means where it names a word that is none: `self.namespace`.
pub(super) fn unescaped(word: &str) -> Option<String> {
    KEYWORDS.contains(&word).then(|| format!("__{word}__"))
}

/// The name by which an expression accesses the property; `None` for one that it can't.
pub fn escape(property: &str) -> Option<String> {
    if KEYWORDS.contains(&property) {
        return Some(format!("__{property}__"));
    }
    let mut chars = property.chars();
    let starts_well = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !property.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/')) {
        return None;
    }
    Some(property.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    use super::escape;

    fn check(property: &str, expected: Option<&str>) {
        assert_eq!(escape(property).as_deref(), expected, "{property}");
    }

    #[test]
    fn escapes() {
        check("a", Some("a"));
        check("a.b", Some("a__dot__b"));
        check("a-b/c", Some("a__dash__b__slash__c"));
        check("a__b", Some("a__underscores__b"));
        check("namespace", Some("__namespace__"));
        check("1a", None);
        check("a b", None);
    }
}
