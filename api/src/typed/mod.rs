//! The same rules over k8s-openapi's types, for the components that read objects through a client.

pub mod placement;
pub mod pods;
pub mod selector;
