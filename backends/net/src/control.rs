//! The control queue: the driver says how many pairs of queues it uses. (virtio 1.2, 5.1.6.5)

use bulkhead_daemon::{Chain, Queue, RingError};
use virtio_bindings::virtio_net as net;

/// Executes the driver's commands. `set_pairs` sets the number of pairs in use, and returns whether it could.
pub(crate) fn control(
    queue: &mut Queue<'_>,
    mut set_pairs: impl FnMut(u16) -> bool,
) -> Result<(), RingError> {
    while let Some(chain) = queue.pop()? {
        let done = command(queue, &chain)?.is_some_and(&mut set_pairs);
        let answer = if done {
            net::VIRTIO_NET_OK
        } else {
            net::VIRTIO_NET_ERR
        } as u8;
        let buffers = chain.writable();
        // The answer goes into the last byte that the device may write.
        let written = match buffers.length().checked_sub(1) {
            Some(last) => {
                buffers.write(queue.memory(), last, &[answer])?;
                buffers.length()
            }
            None => 0,
        };
        queue.complete(chain, written)?;
    }
    Ok(())
}

/// The number of pairs in a `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`. No other command is offered.
fn command(queue: &Queue<'_>, chain: &Chain) -> Result<Option<u16>, RingError> {
    let mut bytes = [0; 4];
    if chain.readable().length() as usize != bytes.len() {
        return Ok(None);
    }
    chain.readable().read(queue.memory(), 0, &mut bytes)?;
    let [class, command, low, high] = bytes;
    let wanted = (u32::from(class), u32::from(command))
        == (
            net::VIRTIO_NET_CTRL_MQ,
            net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
        );
    Ok(wanted.then_some(u16::from_le_bytes([low, high])))
}
