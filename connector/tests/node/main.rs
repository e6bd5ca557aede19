//! The client against a node that a test plays, frame by frame: opening a session, reading and writing through
//! shared memory, deadlines, a node that dies, hangs or lies. Nothing here may panic, hang or give wrong bytes.

mod hello;
mod lies;
mod read;
mod silence;
mod support;
mod write;
