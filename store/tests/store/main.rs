//! Models pushed to storage and fetched from it: a folder, Azurite, an S3 server, and a plain web server; with faults in between.

mod faults;
mod fetching;
mod index;
mod kept;
mod place;
mod pushing;
mod verified;
mod web;
