//! Tests of the scheduler's decisions.
