//! Log lines as JSON, in the form of Kubernetes' components: `{"ts":1.5,"level":"warn","caller":"...","msg":"...",...}`.

use std::fmt;

use serde_json::{Map, Value};
use skiff_api::clock;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::registry::LookupSpan;

/// Writes an object a line.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(writer, "{}", line(event.metadata().level().as_str(), event.metadata().target(), clock::now().as_millisecond(), fields.0))
    }
}

fn line(level: &str, target: &str, millis: i64, mut fields: Map<String, Value>) -> Value {
    let message = fields.remove("message").unwrap_or_default();
    let mut line = Map::new();
    line.insert("ts".into(), (millis as f64 / 1e3).into());
    line.insert("level".into(), level.to_lowercase().into());
    line.insert("caller".into(), target.into());
    line.insert("msg".into(), message);
    // A field of one of these names is not lost.
    for (key, value) in fields {
        let key = if line.contains_key(&key) { format!("{key}_") } else { key };
        line.insert(key, value);
    }
    line.into()
}

/// An event's fields.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_objects() {
        let Value::Object(fields) = json!({"message": "slow request", "code": 200, "level": "x"}) else { unreachable!() };
        let expected = json!({"ts": 1.5, "level": "warn", "caller": "skiff_apiserver", "msg": "slow request", "code": 200, "level_": "x"});
        assert_eq!(line("WARN", "skiff_apiserver", 1_500, fields), expected);
    }
}
