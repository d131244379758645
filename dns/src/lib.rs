//! Cluster DNS
