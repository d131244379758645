//! The controllers: one independent kube-runtime reconciler a file
