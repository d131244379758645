//! SPDY/3.1 as far as Kubernetes' clients use it: streams that the client opens, data, ends. No flow control, as theirs has none.

use std::collections::HashMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::queue;

/// The words that header blocks are compressed with beforehand, each after its length, and then [`DICTIONARY_TAIL`]: a constant
/// of the protocol.
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
    if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization \
    range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get \
    status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found\
    500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
    text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// A frame's header.
const HEADER: usize = 8;
/// A header block longer than this is nonsense here.
const LONGEST_BLOCK: usize = 64 << 10;
/// A data frame carries at most so much.
const LONGEST_DATA: usize = 32 << 10;

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in DICTIONARY_WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(DICTIONARY_TAIL.as_bytes());
    bytes
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A stream that the client opened.
#[derive(Debug)]
pub struct Stream {
    /// Its headers, by names in lower case.
    pub headers: HashMap<String, String>,
    /// What comes in; ends with the client's end of it.
    pub read: mpsc::Receiver<Bytes>,
    /// What goes out.
    pub write: Writer,
}

impl Stream {
    /// A header's value, empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The outgoing half of a stream. Dropping it without [`Writer::finish`] leaves it open.
#[derive(Clone, Debug)]
pub struct Writer {
    id: u32,
    frames: mpsc::Sender<Out>,
}

#[derive(Debug)]
enum Out {
    /// A frame as it is.
    Frame(Bytes),
    /// The answer to a new stream; its header block is compressed in the order of sending.
    Reply(u32),
}

impl Writer {
    /// Sends data; an error when the connection is gone.
    pub async fn write(&self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(LONGEST_DATA));
            self.send(data_frame(self.id, 0, &part)).await?;
        }
        Ok(())
    }

    /// Ends this half.
    pub async fn finish(&self) -> io::Result<()> {
        self.send(data_frame(self.id, FIN, &[])).await
    }

    async fn send(&self, frame: Bytes) -> io::Result<()> {
        self.frames.send(Out::Frame(frame)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn data_frame(id: u32, flags: u8, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + data.len());
    frame.put_u32(id & 0x7fff_ffff);
    frame.put_u32(u32::from(flags) << 24 | data.len() as u32);
    frame.put_slice(data);
    frame.freeze()
}

fn control_frame(kind: u16, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + payload.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

/// Speaks SPDY on a connection: the streams that the client opens, as they come. The connection ends when the receiver and all
/// writers are dropped, or when the client ends it.
pub fn serve<T>(connection: T) -> mpsc::Receiver<Stream>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (frames, outgoing) = queue();
    let (streams, incoming) = queue();
    tokio::spawn(async move {
        if let Err(error) = send(write, outgoing).await {
            tracing::debug!(%error, "writing to a SPDY connection failed");
        }
    });
    tokio::spawn(async move {
        let mut reader = Reader { read, frames, streams, inflate: Decompress::new(true), open: HashMap::new() };
        if let Err(error) = reader.run().await {
            tracing::debug!(%error, "reading from a SPDY connection failed");
        }
    });
    incoming
}

async fn send(mut write: impl AsyncWrite + Unpin, mut outgoing: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut deflate = Compress::new(Compression::fast(), true);
    deflate.set_dictionary(&dictionary()).map_err(io::Error::other)?;
    while let Some(out) = outgoing.recv().await {
        let frame = match out {
            Out::Frame(frame) => frame,
            Out::Reply(id) => {
                let mut payload = Vec::with_capacity(64);
                payload.put_u32(id);
                // No headers: their number, zero.
                let mut block = Vec::with_capacity(64);
                deflate.compress_vec(&[0; 4], &mut block, FlushCompress::Sync).map_err(io::Error::other)?;
                payload.extend_from_slice(&block);
                control_frame(SYN_REPLY, &payload)
            }
        };
        write.write_all(&frame).await?;
        if outgoing.is_empty() {
            write.flush().await?;
        }
    }
    write.shutdown().await
}

struct Reader<R> {
    read: R,
    frames: mpsc::Sender<Out>,
    streams: mpsc::Sender<Stream>,
    inflate: Decompress,
    /// Where the data of a stream goes.
    open: HashMap<u32, mpsc::Sender<Bytes>>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(&mut self) -> io::Result<()> {
        let mut header = [0; HEADER];
        loop {
            match self.read.read_exact(&mut header).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            let mut header = &header[..];
            let (first, second) = (header.get_u32(), header.get_u32());
            let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
            if first & 0x8000_0000 == 0 {
                self.data(first, flags, length).await?;
                continue;
            }
            if length > LONGEST_BLOCK {
                return Err(invalid("a control frame is too long"));
            }
            let mut payload = vec![0; length];
            self.read.read_exact(&mut payload).await?;
            if self.control((first & 0xffff) as u16, flags, &payload).await? {
                return Ok(());
            }
        }
    }

    async fn data(&mut self, id: u32, flags: u8, length: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let mut part = BytesMut::zeroed(left.min(LONGEST_DATA));
            self.read.read_exact(&mut part).await?;
            left -= part.len();
            if let Some(stream) = self.open.get(&id)
                && stream.send(part.freeze()).await.is_err()
            {
                // Nobody reads it any more; what still comes is dropped.
                self.open.remove(&id);
            }
        }
        if flags & FIN != 0 {
            self.open.remove(&id);
        }
        Ok(())
    }

    /// Whether the client says that it ends.
    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> io::Result<bool> {
        let word = |at: usize| payload.get(at..at + 4).map(|mut b| b.get_u32()).ok_or_else(|| invalid("a control frame is too short"));
        match kind {
            SYN_STREAM => {
                let id = word(0)? & 0x7fff_ffff;
                let headers = self.headers(payload.get(10..).ok_or_else(|| invalid("a control frame is too short"))?)?;
                let (data, read) = queue();
                if flags & FIN == 0 {
                    self.open.insert(id, data);
                }
                let stream = Stream { headers, read, write: Writer { id, frames: self.frames.clone() } };
                let reply = self.frames.send(Out::Reply(id)).await;
                if reply.is_err() || self.streams.send(stream).await.is_err() {
                    // Nobody takes streams any more.
                    return Ok(true);
                }
            }
            RST_STREAM => {
                self.open.remove(&(word(0)? & 0x7fff_ffff));
            }
            PING => {
                // Ours aren't sent, so every one is the client's, to be echoed.
                let echoed = self.frames.send(Out::Frame(control_frame(PING, payload))).await;
                return Ok(echoed.is_err());
            }
            // An end that is announced comes by itself.
            GOAWAY => {}
            _ => {}
        }
        Ok(false)
    }

    /// Reads a compressed header block: a number of names and values, each after its length.
    fn headers(&mut self, block: &[u8]) -> io::Result<HashMap<String, String>> {
        let plain = self.inflate(block)?;
        let mut rest = plain.as_slice();
        let cut = || invalid("a header block is cut off");
        let count = rest.try_get_u32().map_err(|_| cut())?;
        let mut text = || -> io::Result<String> {
            let length = rest.try_get_u32().map_err(|_| cut())? as usize;
            let (text, after) = rest.split_at_checked(length).ok_or_else(cut)?;
            rest = after;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        (0..count).map(|_| Ok((text()?.to_lowercase(), text()?))).collect()
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(1024);
        let mut input = block;
        loop {
            let (read, room) = (self.inflate.total_in(), plain.len());
            let result = self.inflate.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            input = &input[(self.inflate.total_in() - read) as usize..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
                Ok(Status::StreamEnd) => return Ok(plain),
                Ok(_) => {}
            }
            if plain.len() < plain.capacity() && (input.is_empty() || plain.len() == room) {
                return Ok(plain);
            }
            if plain.len() > LONGEST_BLOCK {
                return Err(invalid("a header block is too long"));
            }
            plain.reserve(1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client's side, as kubectl's library frames it.
    struct Client {
        deflate: Compress,
        io: tokio::io::DuplexStream,
    }

    impl Client {
        fn new(io: tokio::io::DuplexStream) -> Self {
            let mut deflate = Compress::new(Compression::best(), true);
            deflate.set_dictionary(&dictionary()).expect("a dictionary");
            Self { deflate, io }
        }

        async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
            let mut plain = Vec::new();
            plain.put_u32(headers.len() as u32);
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
            let mut block = Vec::with_capacity(4096);
            self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync).expect("compressed");
            let mut payload = Vec::new();
            payload.put_u32(id);
            payload.put_u32(0);
            payload.put_u16(0);
            payload.extend(block);
            self.io.write_all(&control_frame(SYN_STREAM, &payload)).await.expect("written");
        }

        async fn frame(&mut self) -> (u32, u8, Vec<u8>) {
            let mut header = [0; HEADER];
            self.io.read_exact(&mut header).await.expect("a frame");
            let mut header = &header[..];
            let (first, second) = (header.get_u32(), header.get_u32());
            let mut payload = vec![0; (second & 0x00ff_ffff) as usize];
            self.io.read_exact(&mut payload).await.expect("a frame");
            (first, (second >> 24) as u8, payload)
        }
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in bytes {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2, "its Adler-32, by which zlib names it");
    }

    #[tokio::test]
    async fn streams_carry_headers_and_data_both_ways() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut streams = serve(theirs);
        let mut client = Client::new(ours);
        client.open(1, &[("streamType", "error"), ("port", "80"), ("requestID", "0")]).await;
        client.open(3, &[("streamType", "data"), ("port", "80"), ("requestID", "0")]).await;
        let error = streams.recv().await.expect("a stream");
        assert_eq!((error.header("streamtype"), error.header("port")), ("error", "80"));
        let mut data = streams.recv().await.expect("a stream");
        assert_eq!(data.header("streamtype"), "data");
        for id in [1, 3] {
            let (first, _, payload) = client.frame().await;
            assert_eq!((first & 0xffff, payload[..4].to_vec()), (u32::from(SYN_REPLY), vec![0, 0, 0, id]));
        }
        client.io.write_all(&data_frame(3, 0, b"hello")).await.expect("written");
        client.io.write_all(&data_frame(3, FIN, b" there")).await.expect("written");
        assert_eq!(data.read.recv().await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(data.read.recv().await.as_deref(), Some(&b" there"[..]));
        assert_eq!(data.read.recv().await, None);
        data.write.write(Bytes::from_static(b"hi")).await.expect("written");
        data.write.finish().await.expect("written");
        assert_eq!(client.frame().await, (3, 0, b"hi".to_vec()));
        assert_eq!(client.frame().await, (3, FIN, Vec::new()));
        client.io.write_all(&control_frame(PING, &[0, 0, 0, 1])).await.expect("written");
        assert_eq!(client.frame().await.2, [0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let mut streams = serve(theirs);
        let mut payload = vec![0; 10];
        payload.extend_from_slice(b"no zlib at all");
        ours.write_all(&control_frame(SYN_STREAM, &payload)).await.expect("written");
        assert!(streams.recv().await.is_none());
    }
}
