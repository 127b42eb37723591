//! The real executable, through real sockets.

mod azmlinfsrv;
mod bad_input;
mod configuration;
mod contracts;
mod copies;
mod dev;
mod digits;
mod examples;
mod health;
mod init;
mod lifecycle;
mod lint;
mod listeners;
mod native;
mod scripts;
mod support;
mod vectors;
