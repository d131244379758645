//! Kubernetes in one small binary, and in a test.

pub mod cli;
pub mod cluster;
pub mod components;
pub mod data_dir;
pub mod dialer;
pub mod down;
pub mod join;
pub mod kubeconfig;
pub mod leader;
pub mod local;
pub mod log;
pub mod network;
pub mod report;
pub mod up;

pub use cluster::{Cluster, Options};
