//! The miner: random bytes from rng, their hash from hasher, a count in redis, and a coin when the hash begins with 0.

use std::time::Duration;

use dockercoins::{Failure, Redis, WORK, ask, resolver, terminated};
use hickory_resolver::TokioResolver;
use tokio::time::Instant;

/// How often the count goes to redis.
const REPORT: Duration = Duration::from_secs(1);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let resolver = resolver()?;
    let work = async {
        loop {
            if let Err(error) = mine(&resolver).await {
                println!("{error}; waiting for a moment");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = terminated() => {}
    }
    Ok(())
}

async fn mine(resolver: &TokioResolver) -> Result<(), Failure> {
    let mut redis = Redis::connect(resolver, "redis").await?;
    let (mut done, mut since) = (0u32, Instant::now());
    loop {
        tokio::time::sleep(WORK).await;
        let bytes = ask(resolver, "rng", "/32", None).await?;
        let hash = String::from_utf8(ask(resolver, "hasher", "/", Some(bytes)).await?.to_vec())?;
        done += 1;
        if hash.starts_with('0') {
            println!("Coin found: {}...", &hash[..hash.len().min(8)]);
            redis.number(&["HSET", "wallet", &hash, "1"]).await?;
        }
        if since.elapsed() >= REPORT {
            println!("{done} units of work done, updating hash counter");
            redis.number(&["INCRBY", "hashes", &done.to_string()]).await?;
            (done, since) = (0, Instant::now());
        }
    }
}
