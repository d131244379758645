//! Random bytes: `GET /32` gives 32 of them. One request at a time, which makes it the bottleneck to find.

use std::sync::Arc;

use dockercoins::{Failure, WORK, serve, text};
use tokio::sync::Mutex;

/// More bytes than this are refused.
const MAX: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let turn = Arc::new(Mutex::new(()));
    serve(move |request| {
        let (turn, path) = (turn.clone(), request.uri().path().to_owned());
        async move {
            match path.trim_start_matches('/') {
                "" => text(200, "RNG running\n"),
                count => match count.parse() {
                    Ok(count) if count <= MAX => {
                        let _mine = turn.lock().await;
                        tokio::time::sleep(WORK).await;
                        let mut bytes = vec![0; count];
                        fastrand::fill(&mut bytes);
                        text(200, bytes)
                    }
                    _ => text(400, "say how many bytes, up to a million: /32\n"),
                },
            }
        }
    })
    .await
}
