//! A connection's bytes, of which a stranger may send so many and no more.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The error of too much: HTTP/2 hands on its kind, and no socket has it.
pub(super) const TOO_MUCH: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// Bytes that are said to a peer that has not asked for anything yet: HTTP/2's settings, and
/// what it has to answer to the first frames.
const SAID_UNASKED: usize = 2 * 1024;
/// Bytes that are taken of one connection before the others have their turn.
const TURN: usize = 4 * 1024;

/// What a peer may send: so many bytes with and before a first request, and as many with every
/// other.
pub(super) struct Allowance {
    per_request: usize,
    left: AtomicUsize,
    asked: AtomicBool,
}

impl Allowance {
    pub(super) const fn new(per_request: usize) -> Self {
        Self {
            per_request,
            left: AtomicUsize::new(per_request),
            asked: AtomicBool::new(false),
        }
    }

    /// A request has come.
    pub(super) fn request(&self) {
        if self.asked.swap(true, Ordering::Relaxed) {
            self.left.fetch_add(self.per_request, Ordering::Relaxed);
        }
    }

    /// Whether a request has ever come.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let less = |left: usize| left.checked_sub(bytes);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| io::Error::new(TOO_MUCH, "too much between two requests"))?;
        Ok(())
    }
}

/// A stream that ends with an error when too much comes that is no request, or has to be
/// answered before the first: frames of HTTP/2 may cost their sender less than the receiver.
pub(super) struct Metered<S> {
    stream: S,
    allowance: Arc<Allowance>,
    said_unasked: usize,
    /// Of this connection's turn.
    taken: usize,
}

impl<S> Metered<S> {
    pub(super) const fn new(stream: S, allowance: Arc<Allowance>) -> Self {
        Self {
            stream,
            allowance,
            said_unasked: 0,
            taken: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken >= TURN {
            self.taken = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer)?;
        if read.is_pending() {
            self.taken = 0;
        }
        ready!(read);
        let read = buffer.filled().len() - before;
        self.taken += read;
        Poll::Ready(self.allowance.take(read))
    }
}

impl<S: AsyncWrite + Unpin> Metered<S> {
    fn said(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written
            && !self.allowance.has_asked()
        {
            self.said_unasked += bytes;
            if self.said_unasked > SAID_UNASKED {
                return Poll::Ready(Err(io::Error::new(TOO_MUCH, "too much to answer")));
            }
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.said(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.said(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
