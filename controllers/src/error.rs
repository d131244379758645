//! What can go wrong in a reconciler.

/// An action that failed. Nothing is lost: the object is reconciled again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API server failed.
    #[error("{action}: {source}")]
    Request {
        /// What was attempted, `creating a pod` for instance.
        action: &'static str,
        /// What the client said.
        #[source]
        source: kube::Error,
    },
    /// The object asks for something that can't be done.
    #[error("{0}")]
    Impossible(String),
}

impl Error {
    /// Wraps a client error with what was attempted.
    pub fn on(action: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| Self::Request { action, source }
    }

    /// The client's error, if it was one.
    pub fn cause(&self) -> Option<&kube::Error> {
        match self {
            Self::Request { source, .. } => Some(source),
            Self::Impossible(_) => None,
        }
    }
}
