//! The node agent: pods on Docker, or simulated
