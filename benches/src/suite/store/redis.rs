//! Redis over its unix socket, pipelined: a run is one batch of commands.
//!
//! The client is as lean as one can be, to Redis' advantage: it reads each value from the socket
//! straight to its page, and checks nothing.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::{Pages, RUN_BLOCKS, Shape, Turn, check, touch};
use crate::memory::{self, Walk};
use crate::peer::{self, Running};
use crate::system::{Doing, Failure, Sample, System};

/// Bytes of a reply line are few; a value larger than this goes past the buffer.
const LINE_BYTES: usize = 4096;

struct Client {
    socket: BufReader<UnixStream>,
    /// Ends before its folder goes.
    _server: Running,
    _folder: TempDir,
}

impl Client {
    fn open() -> Result<Self, Failure> {
        let server = peer::executable("redis")?;
        let folder = tempfile::tempdir().doing("making a folder for redis")?;
        let socket = folder.path().join("redis.sock");
        let mut server = Running::start(
            Command::new(server)
                .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
                .arg(&socket)
                .current_dir(folder.path())
                .stderr(Stdio::null()),
        )?;
        let stream = server.until(|| UnixStream::connect(&socket).ok())?;
        Ok(Self { socket: BufReader::with_capacity(LINE_BYTES, stream), _server: server, _folder: folder })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.socket.get_mut().write_all(bytes).doing("sending to redis")
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        (&mut self.socket).take(LINE_BYTES as u64).read_line(&mut line).doing("reading from redis")?;
        Ok(line)
    }

    fn set(&mut self, number: usize, block: &[u8]) -> Result<(), Failure> {
        let key = key(number);
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), block.len());
        self.send(head.as_bytes())?;
        self.send(block)?;
        self.send(b"\r\n")
    }

    fn stored(&mut self) -> Result<(), Failure> {
        let line = self.line()?;
        if line == "+OK\r\n" { Ok(()) } else { Err(unexpected(&line)).doing("storing in redis") }
    }

    /// Asks for a run: one write for all of its keys.
    fn ask(&mut self, run: usize) -> Result<(), Failure> {
        let mut commands = String::new();
        for number in run * RUN_BLOCKS..(run + 1) * RUN_BLOCKS {
            let key = key(number);
            commands.push_str(&format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()));
        }
        self.send(commands.as_bytes())
    }

    fn value(&mut self, page: &mut [u8]) -> Result<(), Failure> {
        let line = self.line()?;
        if line != format!("${}\r\n", page.len()) {
            return Err(unexpected(&line)).doing("loading from redis");
        }
        self.socket.read_exact(page).doing("reading from redis")?;
        self.socket.read_exact(&mut [0; 2]).doing("reading from redis")
    }
}

fn key(number: usize) -> String {
    format!("block:{number}")
}

fn unexpected(line: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("answered {:?}", line.trim_end()))
}

struct Load {
    shape: Shape,
    client: Client,
    pages: Pages,
    turn: Turn,
}

pub(super) fn load(shape: Shape, pages: Pages) -> Result<Box<dyn System>, Failure> {
    touch(&pages, shape);
    let mut client = Client::open()?;
    let mut block = vec![0; shape.block_bytes];
    for number in 0..shape.blocks() {
        memory::fill(&mut block, number);
        client.set(number, &block)?;
        client.stored()?;
    }
    client.ask(0)?;
    for number in 0..RUN_BLOCKS {
        client.value(&mut block)?;
        check(&block, number)?;
    }
    Ok(Box::new(Load { shape, client, pages, turn: Turn::new(shape) }))
}

impl System for Load {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let bytes = self.shape.block_bytes;
        let mut pages = self.pages.borrow_mut();
        let start = Instant::now();
        for _ in 0..self.shape.round_runs {
            self.client.ask(self.turn.run.step())?;
            for _ in 0..RUN_BLOCKS {
                let to = self.turn.page.step();
                self.client.value(&mut pages[to * bytes..][..bytes])?;
            }
        }
        Ok(vec![Sample::rate(self.shape.round_bytes(), start.elapsed())])
    }
}

struct Store {
    shape: Shape,
    client: Client,
    pages: Pages,
    run: usize,
    page: Walk,
}

pub(super) fn write(shape: Shape, pages: Pages) -> Result<Box<dyn System>, Failure> {
    touch(&pages, shape);
    let client = Client::open()?;
    Ok(Box::new(Store { shape, client, pages, run: 0, page: Walk::new(shape.blocks(), 2) }))
}

impl System for Store {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let bytes = self.shape.block_bytes;
        let pages = self.pages.borrow();
        let start = Instant::now();
        for _ in 0..self.shape.round_runs {
            for at in 0..RUN_BLOCKS {
                let from = self.page.step();
                self.client.set(self.run * RUN_BLOCKS + at, &pages[from * bytes..][..bytes])?;
            }
            for _ in 0..RUN_BLOCKS {
                self.client.stored()?;
            }
            self.run = (self.run + 1) % self.shape.runs;
        }
        Ok(vec![Sample::rate(self.shape.round_bytes(), start.elapsed())])
    }
}
