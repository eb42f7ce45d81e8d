//! The threads that serve the parts of a device, where it has several.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

use crate::device::Device;
use crate::error::Error;
use crate::eventfd::EventFd;
use crate::poll::{Poll, Token};
use crate::post::Post;

/// Enough for what a device does to a request.
const STACK: usize = 256 << 10;

/// The parts of `device`, each for a thread of its own; if there is only one, for the thread that waits by `poll`.
pub(crate) fn posts<'d, D: Device>(
    parts: &'d mut [D],
    rings: u16,
    poll: &Arc<Poll>,
) -> Result<Vec<Post<'d, D>>, Error> {
    let failed = |error| Error::System("cannot wait for the device", error);
    let number = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    if let [part] = parts {
        return Ok(vec![Post::here(part, rings, poll).map_err(failed)?]);
    }
    (0..number)
        .zip(parts)
        .map(|(part, device)| Post::apart(device, (part, number), rings).map_err(failed))
        .collect()
}

/// The threads.
pub(crate) struct Crew<'s, 'd, D: Device> {
    posts: &'s [Post<'d, D>],
    /// Tells the session that one has ended.
    alarm: EventFd,
    poll: Arc<Poll>,
    failure: Mutex<Option<io::Error>>,
}

impl<'s, 'd, D: Device + Send> Crew<'s, 'd, D> {
    /// For `posts`; [`Token::Alarm`] is told by `poll`.
    pub(crate) fn new(posts: &'s [Post<'d, D>], poll: &Arc<Poll>) -> Result<Self, Error> {
        let alarm = EventFd::new().map_err(|error| Error::System("eventfd", error))?;
        poll.add(&alarm, Token::Alarm)
            .map_err(Error::system("epoll"))?;
        Ok(Self {
            posts,
            alarm,
            poll: Arc::clone(poll),
            failure: Mutex::default(),
        })
    }

    /// Starts them. Those that were started are to be ended even if not all could be.
    pub(crate) fn start<'scope>(&'s self, scope: &'scope Scope<'scope, 's>) -> Result<(), Error> {
        for post in self.posts.iter().filter(|post| post.is_apart()) {
            Builder::new()
                .name("rings".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    // Also if it panics.
                    let _alarm = Alarm(&self.alarm);
                    if let Err(error) = post.serve() {
                        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                })
                .map_err(|error| Error::System("cannot start a thread", error))?;
        }
        Ok(())
    }

    /// Why a thread has ended that nobody told to.
    pub(crate) fn failure(&self) -> Error {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        Error::Device(
            failure
                .take()
                .unwrap_or_else(|| io::Error::other("a thread of the device has ended")),
        )
    }
}

impl<D: Device> Drop for Crew<'_, '_, D> {
    fn drop(&mut self) {
        self.poll.remove(&self.alarm);
    }
}

/// Ends the threads when it is dropped.
pub(crate) struct Ending<'s, 'd, D: Device>(pub(crate) &'s [Post<'d, D>]);

impl<D: Device> Drop for Ending<'_, '_, D> {
    fn drop(&mut self) {
        self.0.iter().for_each(Post::end);
    }
}

struct Alarm<'a>(&'a EventFd);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.signal();
    }
}
