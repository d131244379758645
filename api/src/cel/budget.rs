//! What the rules of a definition may cost at most, by the estimate: each for itself, and all together.

use crate::field::Error;
use crate::value::text;
use serde_json::Value;

/// What a rule may cost, as often as it can apply in an object. Upstream's `StaticEstimatedCostLimit`.
const RULE: u64 = 10_000_000;
/// What all rules of a schema may cost. Upstream's `StaticEstimatedCRDCostLimit`.
const ALL: u64 = 100_000_000;
/// How many rules are named when all together cost too much.
const NAMED: usize = 4;

/// What was estimated so far.
#[derive(Debug)]
pub(super) struct Budget {
    /// Whether no rule is refused for itself: the schema was stored like this already.
    lenient: bool,
    total: u64,
    /// The most expensive rules: where they stand, and their cost.
    dear: Vec<(String, u64)>,
}

impl Budget {
    pub fn new(lenient: bool) -> Self {
        Self { lenient, total: 0, dear: Vec::new() }
    }

    /// Counts an expression that stands at `path`. The error is that it costs too much for itself.
    pub fn spend(&mut self, name: &str, path: String, cost: u64) -> Option<Error> {
        let error = (!self.lenient && cost > RULE).then(|| Error::forbidden(&path, excess(name, cost, RULE)));
        self.total = self.total.saturating_add(cost);
        if cost >= ALL / 100 {
            self.dear.push((path, cost));
            self.dear.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.dear.truncate(NAMED);
        }
        error
    }

    /// What is wrong with all together, if they cost too much. `path` is where the schema stands.
    pub fn close(self, path: &str) -> Vec<Error> {
        if self.total <= ALL {
            return Vec::new();
        }
        let share = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        let mut errors: Vec<Error> = self.dear.iter().map(|(path, _)| Error::forbidden(path, share)).collect();
        let whole = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(Error::forbidden(path, excess(whole, self.total, ALL)));
        errors
    }
}

fn excess(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    let advice = "try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared";
    format!("{name} exceeds budget by factor of {factor} ({advice})")
}

/// How often what stands below a node can occur in an object, when the node itself can `times`; `None` is without limit.
pub(super) fn below(schema: &Value, times: Option<u64>) -> Option<u64> {
    let limit = |name: &str| schema[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
    let each = match text(schema, &["type"]) {
        "object" if !schema["additionalProperties"].is_null() => limit("maxProperties")?,
        "array" => limit("maxItems")?,
        _ => 1,
    };
    Some(times?.saturating_mul(each))
}
