//! Kubernetes in one small binary
