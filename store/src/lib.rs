//! The revisioned key-value store: embedded, memory, etcd
