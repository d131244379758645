//! Kubernetes in one small binary, and in a test.

pub mod local;
