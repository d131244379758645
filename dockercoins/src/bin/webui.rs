//! The page with the hashing speed as a live chart, and the numbers behind it at `/json`.

use dockercoins::{Answer, Failure, Redis, resolver, serve, text};
use hickory_resolver::TokioResolver;
use hyper::header::{CONTENT_TYPE, HeaderValue};

const PAGE: &str = include_str!("../index.html");

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let resolver = resolver()?;
    serve(move |request| {
        let (resolver, path) = (resolver.clone(), request.uri().path().to_owned());
        async move {
            match path.as_str() {
                "/" | "/index.html" => typed(text(200, PAGE), "text/html; charset=utf-8"),
                "/json" => match numbers(&resolver).await {
                    Ok(numbers) => typed(text(200, numbers), "application/json"),
                    Err(error) => text(503, format!("redis: {error}\n")),
                },
                "/healthz" => text(200, "ok\n"),
                _ => text(404, "not found\n"),
            }
        }
    })
    .await
}

fn typed(mut answer: Answer, content_type: &'static str) -> Answer {
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

async fn numbers(resolver: &TokioResolver) -> Result<String, Failure> {
    let mut redis = Redis::connect(resolver, "redis").await?;
    let coins = redis.number(&["HLEN", "wallet"]).await?;
    let hashes = redis.number(&["GET", "hashes"]).await?;
    Ok(serde_json::json!({"coins": coins, "hashes": hashes}).to_string())
}
