//! Exec and attach: a process's streams and a client's, brought together.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::spdy::{Stream, Writer};
use super::{queue, websocket};
use crate::runtime::{Output, Session, TerminalSize};

/// The protocols of WebSockets, the best first.
pub const WEBSOCKET_PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"];
/// The protocols of SPDY, the best first.
pub const SPDY_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How long a client has to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// How long a client has to read the last words.
const CLOSING: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel named by the one byte of data ends.
const HALF_CLOSE: u8 = 255;

/// Which streams a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// What a client says.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// Input for the process.
    Stdin(Bytes),
    /// There is no more.
    End,
    /// The terminal's size.
    Resize(TerminalSize),
}

/// How a client is spoken to.
pub enum Client {
    /// By WebSocket.
    WebSocket {
        /// The outgoing half.
        sender: websocket::Sender,
        /// Whether the protocol knows a `Status`; the oldest has a plain text for failures.
        structured: bool,
    },
    /// By SPDY.
    Spdy {
        /// The output stream.
        stdout: Option<Writer>,
        /// The stream of errors.
        stderr: Option<Writer>,
        /// The stream of the final word.
        error: Writer,
        /// Whether the protocol knows a `Status`.
        structured: bool,
    },
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WebSocket { .. } => "Client::WebSocket",
            Self::Spdy { .. } => "Client::Spdy",
        })
    }
}

impl Client {
    async fn write(&mut self, output: Output) -> io::Result<()> {
        match (self, output) {
            (Self::WebSocket { sender, .. }, Output::Stdout(data)) => sender.send(STDOUT, &data).await,
            (Self::WebSocket { sender, .. }, Output::Stderr(data)) => sender.send(STDERR, &data).await,
            (Self::Spdy { stdout: Some(stream), .. }, Output::Stdout(data)) | (Self::Spdy { stderr: Some(stream), .. }, Output::Stderr(data)) => {
                stream.write(data).await
            }
            // It wasn't asked for.
            (Self::Spdy { .. }, _) => Ok(()),
        }
    }

    async fn finish(mut self, status: &Value) -> io::Result<()> {
        let (Self::WebSocket { structured, .. } | Self::Spdy { structured, .. }) = &self;
        let words = if *structured {
            status.to_string()
        } else if status["status"] == "Success" {
            String::new()
        } else {
            status["message"].as_str().unwrap_or_default().to_owned()
        };
        match &mut self {
            Self::WebSocket { sender, .. } => {
                if !words.is_empty() {
                    sender.send(ERROR, words.as_bytes()).await?;
                }
                sender.close().await
            }
            Self::Spdy { stdout, stderr, error, .. } => {
                error.write(Bytes::from(words)).await?;
                for stream in [Some(error), stdout.as_mut(), stderr.as_mut()].into_iter().flatten() {
                    stream.finish().await?;
                }
                Ok(())
            }
        }
    }
}

/// The final word about a process that ended.
pub fn exit_status(code: Option<i32>, command: &[String]) -> Value {
    match code {
        None | Some(0) => json!({"metadata": {}, "status": "Success"}),
        Some(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: error executing command [{}], exit code {code}", command.join(" ")),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
    }
}

/// The final word about what couldn't be done.
pub fn failure(why: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": format!("Internal error occurred: {why}"),
        "details": {"causes": [{"message": why}]}, "code": 500})
}

/// Brings a process and a client together until the process ends or the client leaves.
pub async fn serve(session: Result<Session, String>, mut client: Client, mut said: mpsc::Receiver<Said>, command: &[String]) {
    let status = match session {
        Err(why) => failure(&why),
        Ok(Session { stdin, mut output, resize, exit }) => {
            let input = tokio::spawn(async move {
                let mut stdin = stdin;
                while let Some(words) = said.recv().await {
                    match (words, &mut stdin) {
                        (Said::Stdin(data), Some(pipe)) => {
                            // A process that reads no more may well go on.
                            if pipe.write_all(&data).await.is_err() || pipe.flush().await.is_err() {
                                stdin = None;
                            }
                        }
                        (Said::End, Some(pipe)) => {
                            let _ = pipe.shutdown().await;
                            stdin = None;
                        }
                        (Said::Resize(size), _) => {
                            if let Some(resize) = &resize {
                                let _ = resize.send(size).await;
                            }
                        }
                        (_, None) => {}
                    }
                }
                // The client left: so its input ends.
                if let Some(mut pipe) = stdin {
                    let _ = pipe.shutdown().await;
                }
            });
            let mut failed = None;
            while let Some(piece) = output.next().await {
                match piece {
                    Ok(piece) => {
                        if client.write(piece).await.is_err() {
                            input.abort();
                            return;
                        }
                    }
                    Err(error) => {
                        failed = Some(error.to_string());
                        break;
                    }
                }
            }
            let exit = match failed {
                Some(why) => Err(why),
                None => exit.await.map_err(|e| e.to_string()),
            };
            input.abort();
            match exit {
                Ok(code) => exit_status(code, command),
                Err(why) => failure(&why),
            }
        }
    };
    if let Err(error) = client.finish(&status).await {
        tracing::debug!(%error, "a client left before the end of its command");
    }
}

/// Reads what a WebSocket's client says, until it leaves.
pub fn listen_websocket(mut receiver: websocket::Receiver) -> mpsc::Receiver<Said> {
    let (sender, said) = queue();
    tokio::spawn(async move {
        while let Some((channel, data)) = receiver.next().await {
            let words = match channel {
                STDIN => Said::Stdin(data),
                RESIZE => match size(&data) {
                    Some(size) => Said::Resize(size),
                    None => continue,
                },
                HALF_CLOSE if data.first() == Some(&STDIN) => Said::End,
                _ => continue,
            };
            if sender.send(words).await.is_err() {
                // Nobody listens; reading on lets the client's close come through.
                while receiver.next().await.is_some() {}
                return;
            }
        }
    });
    said
}

fn size(data: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(data).ok()?;
    let number = |key: &str| size[key].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: number("Width")?, height: number("Height")? })
}

/// Waits for the streams that a SPDY client has to open, and reads what it says.
pub async fn open_spdy(
    streams: &mut mpsc::Receiver<Stream>,
    wanted: Wanted,
    sizes: bool,
    structured: bool,
) -> io::Result<(Client, mpsc::Receiver<Said>)> {
    let mut missing = 1 + [wanted.stdin, wanted.stdout, wanted.stderr && !wanted.tty, wanted.tty && sizes].into_iter().filter(|yes| *yes).count();
    let (mut stdout, mut stderr, mut error) = (None, None, None);
    let (sender, said) = queue();
    let late = || io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for client to create streams");
    while missing > 0 {
        let mut stream = tokio::time::timeout(OPENING, streams.recv()).await.map_err(|_| late())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        missing -= 1;
        match stream.headers.get("streamtype").map(String::as_str) {
            Some("error") => error = Some(stream.write),
            Some("stdout") => stdout = Some(stream.write),
            Some("stderr") => stderr = Some(stream.write),
            Some("stdin") => {
                let sender = sender.clone();
                tokio::spawn(async move {
                    while let Some(data) = stream.read.recv().await {
                        if sender.send(Said::Stdin(data)).await.is_err() {
                            return;
                        }
                    }
                    // Nobody may listen any more.
                    let _ = sender.send(Said::End).await;
                });
            }
            Some("resize") => {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut text = Vec::new();
                    while let Some(data) = stream.read.recv().await {
                        text.extend_from_slice(&data);
                        // One JSON object after another, in pieces of any size.
                        while let Some(end) = text.iter().position(|b| *b == b'}') {
                            let object: Vec<u8> = text.drain(..=end).collect();
                            if let Some(size) = size(&object)
                                && sender.send(Said::Resize(size)).await.is_err()
                            {
                                return;
                            }
                        }
                    }
                });
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream of an unknown type")),
        }
    }
    let error = error.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the client opened no error stream"))?;
    Ok((Client::Spdy { stdout, stderr, error, structured }, said))
}

/// Gives a SPDY client the time to read and to end the connection itself.
pub async fn linger(mut streams: mpsc::Receiver<Stream>) {
    let _ = tokio::time::timeout(CLOSING, async { while streams.recv().await.is_some() {} }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_word() {
        assert_eq!(exit_status(Some(0), &[])["status"], "Success");
        assert_eq!(exit_status(None, &[])["status"], "Success");
        let status = exit_status(Some(3), &["false".into()]);
        assert_eq!((status["reason"].as_str(), status["details"]["causes"][0]["message"].as_str()), (Some("NonZeroExitCode"), Some("3")));
        assert_eq!(failure("no")["message"], "Internal error occurred: no");
    }

    #[test]
    fn terminal_sizes() {
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some(TerminalSize { width: 80, height: 24 }));
        assert_eq!(size(b"{}"), None);
    }
}
