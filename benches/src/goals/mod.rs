//! One goal a file: each measures its sides in turn, round by round, and returns what it has found.

pub mod catch_up;
pub mod cluster;
pub mod expectations;
pub mod fan_out;
pub mod ingest;
pub mod instructions;
pub mod latency;
pub mod rare_filter;
pub mod restart;
pub mod scale_log;
pub mod scale_products;
pub mod scale_waiting;
pub mod selectivity;
pub mod slow_neighbour;
pub mod waiting;
pub mod worst_case_memory;
