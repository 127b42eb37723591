//! The real executable, through real sockets.

mod azmlinfsrv;
mod bad_input;
mod breaker;
mod configuration;
mod contracts;
mod copies;
mod crashes;
mod dev;
mod digits;
mod disconnects;
mod endings;
mod examples;
mod failures;
mod health;
mod init;
mod isolation;
mod lifecycle;
mod lint;
mod listeners;
mod native;
mod proof;
mod scripts;
mod spark;
mod streaming;
mod support;
mod vectors;
