//! What those rely on who have something collected, through the whole way to a storage that is real, or that fails when it is told to.

mod azure;
mod bounds;
mod crash;
mod damage;
mod disk;
mod erase;
mod layouts;
mod outage;
mod support;
