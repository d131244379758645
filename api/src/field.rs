//! Errors in a field of an object, worded as upstream words them.

use std::fmt;

use serde_json::Value;

/// What is wrong with a field. The names are the `reason` of a `Status` cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// The field must have a value.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not in the closed set of values.
    NotSupported,
    /// The value is allowed in general, not here.
    Forbidden,
    /// The value repeats one that must be unique.
    Duplicate,
    /// The value refers to something that isn't there.
    NotFound,
    /// The value has more bytes than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// The value has another type than its schema says.
    TypeInvalid,
    /// The server failed over this field.
    Internal,
}

impl ErrorType {
    /// The `reason` of a `Status` cause.
    pub fn reason(self) -> &'static str {
        self.names().0
    }

    /// The reason, and how messages say it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Required => ("FieldValueRequired", "Required value"),
            Self::Invalid => ("FieldValueInvalid", "Invalid value"),
            Self::NotSupported => ("FieldValueNotSupported", "Unsupported value"),
            Self::Forbidden => ("FieldValueForbidden", "Forbidden"),
            Self::Duplicate => ("FieldValueDuplicate", "Duplicate value"),
            Self::NotFound => ("FieldValueNotFound", "Not found"),
            Self::TooLong => ("FieldValueTooLong", "Too long"),
            Self::TooMany => ("FieldValueTooMany", "Too many"),
            Self::TypeInvalid => ("FieldValueTypeInvalid", "Invalid value"),
            Self::Internal => ("InternalError", "Internal error"),
        }
    }
}

/// One error, of the field at `path`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What sort of error it is.
    pub kind: ErrorType,
    /// Where: `spec.containers[0].image`, `metadata.labels`.
    pub path: String,
    /// The offending value as it is printed, where this sort of error prints one.
    pub value: Option<String>,
    /// The rest of the sentence; may be empty.
    pub detail: String,
}

/// Prints a value as upstream's messages do: text in quotes, numbers and booleans bare, the rest as JSON.
pub fn shown(value: &Value) -> String {
    value.to_string()
}

impl Error {
    /// `path: Required value: detail`
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Required, path: path.into(), value: None, detail: detail.into() }
    }

    /// `path: Invalid value: value: detail`
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Invalid, path: path.into(), value: Some(shown(&value.into())), detail: detail.into() }
    }

    /// `path: Unsupported value: value: supported values: "a", "b"`, in the order given.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self { kind: ErrorType::NotSupported, path: path.into(), value: Some(shown(&value.into())), detail }
    }

    /// `path: Forbidden: detail`
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Forbidden, path: path.into(), value: None, detail: detail.into() }
    }

    /// `path: Duplicate value: value`
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { kind: ErrorType::Duplicate, path: path.into(), value: Some(shown(&value.into())), detail: String::new() }
    }

    /// `path: Not found: value`
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { kind: ErrorType::NotFound, path: path.into(), value: Some(shown(&value.into())), detail: String::new() }
    }

    /// `path: Too long: may not be more than N bytes`
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self { kind: ErrorType::TooLong, path: path.into(), value: None, detail: format!("may not be more than {max} bytes") }
    }

    /// `path: Too many: N: must have at most M items`
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self {
            kind: ErrorType::TooMany,
            path: path.into(),
            value: Some(actual.to_string()),
            detail: format!("must have at most {max} {items}"),
        }
    }

    /// The error without its path, as the `message` of a `Status` cause.
    pub fn message(&self) -> String {
        let mut text = self.kind.names().1.to_owned();
        for part in [self.value.as_deref().unwrap_or(""), &self.detail] {
            if !part.is_empty() {
                text.push_str(": ");
                text.push_str(part);
            }
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

impl std::error::Error for Error {}
