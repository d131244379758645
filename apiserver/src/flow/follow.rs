//! Keeps priority and fairness up with its objects, and the objects with what they must be.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use skiff_api::{Status, clock};
use futures::{StreamExt, stream};

use super::objects::{self, Write};
use crate::bootstrap::request;
use crate::cache::{Filter, ResourceCache};
use crate::server::Server;

const SCHEMAS: &str = "/registry/flowschemas/";
const LEVELS: &str = "/registry/prioritylevelconfigurations/";
const BASE: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
/// Who writes the objects, and who the conditions: upstream's names.
const PRODUCER: &str = "api-priority-and-fairness-config-producer-v1";
const CONSUMER: &str = "api-priority-and-fairness-config-consumer-v1";
/// How many writes go out at a time.
const PARALLEL: usize = 32;

fn read(cache: &ResourceCache) -> Vec<Value> {
    cache.list(&Filter::default(), 0).objects.iter().filter_map(|object| object.value().ok()).collect()
}

/// Follows the objects until the server ends.
pub(crate) async fn follow(server: Arc<Server>) {
    let (Some(levels), Some(schemas)) = (server.cache.resource(LEVELS), server.cache.resource(SCHEMAS)) else {
        tracing::error!("there are no FlowSchemas or PriorityLevelConfigurations to follow");
        return;
    };
    let (mut level_bell, mut schema_bell) = (levels.subscribe(), schemas.subscribe());
    loop {
        level_bell.mark_unchanged();
        schema_bell.mark_unchanged();
        let (known_levels, known_schemas) = (read(&levels), read(&schemas));
        // Before the first ones are written, the ones that they will be count.
        if !known_levels.is_empty() {
            server.flow.configure(&known_levels, &known_schemas);
        }
        let writes = objects::plan(&known_levels, &known_schemas, &clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        stream::iter(writes).for_each_concurrent(PARALLEL, |write| {
            let server = &server;
            async move {
                // Should another server have been quicker, its write is seen next.
                if let Err(error) = carry_out(server, &write).await {
                    tracing::warn!(%error, "a flow control object can't be written");
                }
            }
        })
        .await;
        let changed = tokio::select! {
            changed = level_bell.changed() => changed,
            changed = schema_bell.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn carry_out(server: &Arc<Server>, write: &Write) -> Result<(), Status> {
    let plural = |kind: &str| if kind == "FlowSchema" { "flowschemas" } else { "prioritylevelconfigurations" };
    let of = |object: &Value| (plural(object["kind"].as_str().unwrap_or("")), object["metadata"]["name"].as_str().unwrap_or("").to_owned());
    match write {
        Write::Create(object) => {
            let path = format!("{BASE}/{}?fieldManager={PRODUCER}", of(object).0);
            request(server, Method::POST, &path, "application/json", object).await
        }
        Write::Update(object) => {
            let (plural, name) = of(object);
            request(server, Method::PUT, &format!("{BASE}/{plural}/{name}?fieldManager={PRODUCER}"), "application/json", object).await
        }
        Write::Delete { kind, name } => {
            request(server, Method::DELETE, &format!("{BASE}/{}/{name}", plural(kind)), "application/json", &json!({})).await
        }
        Write::Condition { name, condition } => {
            let path = format!("{BASE}/flowschemas/{name}/status?fieldManager={CONSUMER}&force=true");
            let applied = json!({
                "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name}, "status": {"conditions": [condition]},
            });
            request(server, Method::PATCH, &path, "application/apply-patch+yaml", &applied).await
        }
    }
}
