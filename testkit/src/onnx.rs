//! Models made in memory.
