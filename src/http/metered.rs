//! A connection's bytes, of which a stranger may send so many and no more.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The error of too much: HTTP/2 hands on its kind, and no socket has it.
pub(super) const TOO_MUCH: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// A stream that ends with an error when too much came before the first request: frames that
/// HTTP/2 has to pass over cost their sender less than the receiver.
pub(super) struct Metered<S> {
    stream: S,
    left: usize,
    asked: Arc<AtomicBool>,
}

impl<S> Metered<S> {
    /// `before_asking` bytes may come before `asked` tells that the first request has.
    pub(super) const fn new(stream: S, before_asking: usize, asked: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            left: before_asking,
            asked,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if !self.asked.load(Ordering::Relaxed) {
            let read = buffer.filled().len() - before;
            let Some(left) = self.left.checked_sub(read) else {
                return Poll::Ready(Err(io::Error::new(
                    TOO_MUCH,
                    "too much before the first request",
                )));
            };
            self.left = left;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
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
