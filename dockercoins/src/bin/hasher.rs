//! SHA-256 of what is POSTed, in hexadecimal.

use dockercoins::{Failure, WORK, serve, text};
use http_body_util::{BodyExt, Limited};
use sha2::{Digest, Sha256};

/// Longer bodies are refused.
const MAX: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    serve(|request| async move {
        if request.method() != "POST" {
            return text(200, "HASHER running\n");
        }
        match Limited::new(request.into_body(), MAX).collect().await {
            Ok(body) => {
                tokio::time::sleep(WORK).await;
                text(200, format!("{:x}", Sha256::digest(body.to_bytes())))
            }
            Err(error) => text(400, format!("read the body: {error}\n")),
        }
    })
    .await
}
