//! Kubernetes in one small binary, and in a test.

pub mod cluster;
pub mod local;

pub use cluster::{Cluster, Options};
