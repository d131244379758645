//! `ValidatingAdmissionPolicy`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::Status;

use super::super::expressions::Seen;
use super::super::{Plugin, Request, matching};
use super::forbidden;

/// How many failures the audit log is told of.
const MAX_FAILURES: usize = 50;
/// How long an audit annotation may be, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;

pub(in super::super) struct ValidatingPolicies;

#[async_trait]
impl Plugin for ValidatingPolicies {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        validate(request, Some(object))
    }
}

/// The first refusal, which is the answer's.
#[derive(Default)]
struct Verdict {
    denied: Option<(String, String)>,
    failures: Vec<Value>,
}

impl Verdict {
    fn deny(&mut self, policy: &str, binding: &str, message: &str, reason: &str) {
        let with = if binding.is_empty() { String::new() } else { format!(" with binding '{binding}'") };
        self.denied.get_or_insert_with(|| (format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {message}"), reason.to_owned()));
    }
}

/// Lets the policies refuse.
pub(in super::super) fn validate(request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
    let policies = request.call.server.policies.validating(&request.call.server.cache);
    if policies.is_empty() || matching::is_exempt(request) {
        return Ok(());
    }
    let notes = &request.call.notes;
    let mut verdict = Verdict::default();
    for bound in policies.iter() {
        let constraints = bound.constraints.as_ref().map_err(Clone::clone);
        let matched = match constraints.and_then(|c| c.matched(request, object, false).map_err(|status| status.message)) {
            Ok(None) => continue,
            Ok(Some(matched)) => matched,
            Err(why) => {
                if bound.fails {
                    verdict.deny(&bound.name, "", &format!("failed to configure policy: {why}"), "");
                }
                continue;
            }
        };
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for binding in &bound.bindings {
            let params = match binding.matches(request, object).and_then(|m| if m { binding.params(bound, request) } else { Ok(Vec::new()) }) {
                Ok(params) => params,
                Err(why) => {
                    if bound.fails {
                        verdict.deny(&bound.name, &binding.name, &format!("failed to configure binding: {why}"), "");
                    }
                    continue;
                }
            };
            if params.is_empty() {
                continue;
            }
            let seen = Seen::new(request, &matched, object)?;
            for params in &params {
                let input = seen.input(params);
                let (denials, made) = match bound.policy.matches(&input) {
                    Ok(true) => bound.policy.validate(&input),
                    Ok(false) => continue,
                    Err(why) if bound.fails => {
                        (vec![skiff_api::cel::admission::Denial { index: 0, message: why, reason: String::new(), failed: true }], Vec::new())
                    }
                    Err(_) => continue,
                };
                for denial in denials.iter().filter(|d| !d.failed || bound.fails) {
                    for action in &binding.actions {
                        match action.as_str() {
                            "Deny" => verdict.deny(&bound.name, &binding.name, &denial.message, &denial.reason),
                            "Warn" => notes.warn(format!(
                                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                                bound.name, binding.name, denial.message
                            )),
                            _ => verdict.failures.push(json!({
                                "message": denial.message, "policy": bound.name, "binding": binding.name,
                                "expressionIndex": denial.index, "validationActions": binding.actions,
                            })),
                        }
                    }
                }
                for (key, made) in made {
                    match made {
                        Ok(Some(text)) => {
                            let texts = annotations.entry(key).or_default();
                            let text: String = text.chars().take(MAX_ANNOTATION).collect();
                            if !texts.contains(&text) {
                                texts.push(text);
                            }
                        }
                        Err(why) if bound.fails => verdict.deny(&bound.name, &binding.name, &why, ""),
                        _ => {}
                    }
                }
            }
        }
        for (key, texts) in annotations {
            notes.annotate(format!("{}/{key}", bound.name), texts.join(", "));
        }
    }
    if !verdict.failures.is_empty() {
        verdict.failures.truncate(MAX_FAILURES);
        notes.annotate("validation.policy.admission.k8s.io/validation_failure".into(), Value::Array(verdict.failures).to_string());
    }
    match verdict.denied {
        Some((message, reason)) => Err(forbidden(request, object, &message, &reason)),
        None => Ok(()),
    }
}
