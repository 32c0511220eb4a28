#![forbid(unsafe_code)]

pub mod histogram;
