//! Services to packets
