//! asyncio's synchronisation primitives, native: what `tideloop.accelerate()` puts in asyncio's place.
//!
//! Each class here is the first base of a Python class whose second base is asyncio's own class
//! (`python/tideloop/sync.py`, `queues.py`): what is defined here replaces the stock implementation,
//! everything else is inherited from it, and `isinstance` holds. The behaviour, down to who is woken
//! when a waiter is cancelled, is that of the Python version it runs on.
//!
//! **Diverted.** A subclass may override a method that the stock class calls on itself (`Queue._put`,
//! `Semaphore.locked`, …). Such an instance is *diverted* when it is made: from then on every method
//! is the stock one, and this class only stores its attributes.

pub mod barrier;
pub mod batches;
pub mod condition;
pub mod event;
pub mod gather;
pub mod lock;
pub mod queue;
pub mod ranked;
pub mod semaphore;
pub mod shield;
pub mod sleep;
pub mod spawn;
pub mod tally;
pub mod task_group;
pub mod timeout;
pub mod wait;
pub mod wait_for;
pub mod wait_list;

use crate::ffi::function::Entry;
use crate::sockets::{self, Trying};
use crate::streams::{feeding, messages, reading, writing};
use crate::tls::transport;

/// Every native function by its name.
pub static ENTRIES: &[Entry] = &[
    Entry::coroutine::<queue::Get>("Queue.get"),
    Entry::coroutine::<batches::Next>("Queue.__anext__"),
    Entry::coroutine::<queue::Put>("Queue.put"),
    Entry::coroutine::<queue::Join>("Queue.join"),
    Entry::method::<queue::GetNowait>("Queue.get_nowait"),
    Entry::method::<queue::PutNowait>("Queue.put_nowait"),
    Entry::method::<queue::TaskDone>("Queue.task_done"),
    Entry::method::<queue::Size>("Queue.qsize"),
    Entry::method::<queue::Empty>("Queue.empty"),
    Entry::method::<queue::Full>("Queue.full"),
    Entry::method::<queue::Shutdown>("Queue.shutdown"),
    Entry::coroutine::<lock::Acquire>("Lock.acquire"),
    Entry::coroutine::<lock::Enter>("Lock.__aenter__"),
    Entry::coroutine::<lock::Exit>("Lock.__aexit__"),
    Entry::method::<lock::Release>("Lock.release"),
    Entry::method::<lock::Locked>("Lock.locked"),
    Entry::coroutine::<semaphore::Acquire>("Semaphore.acquire"),
    Entry::coroutine::<semaphore::Enter>("Semaphore.__aenter__"),
    Entry::coroutine::<semaphore::Exit>("Semaphore.__aexit__"),
    Entry::method::<semaphore::Release>("Semaphore.release"),
    Entry::method::<semaphore::Locked>("Semaphore.locked"),
    Entry::coroutine::<condition::Wait>("Condition.wait"),
    Entry::coroutine::<condition::WaitFor>("Condition.wait_for"),
    Entry::method::<condition::Notify>("Condition.notify"),
    Entry::method::<condition::NotifyAll>("Condition.notify_all"),
    Entry::coroutine::<condition::Enter>("Condition.__aenter__"),
    Entry::coroutine::<condition::Exit>("Condition.__aexit__"),
    Entry::coroutine::<barrier::Enter>("Barrier.__aenter__"),
    Entry::coroutine::<barrier::Wait>("Barrier.wait"),
    Entry::coroutine::<event::Wait>("Event.wait"),
    Entry::method::<event::Set>("Event.set"),
    Entry::method::<event::Clear>("Event.clear"),
    Entry::method::<event::IsSet>("Event.is_set"),
    Entry::coroutine::<sleep::Sleep>("sleep"),
    Entry::method::<spawn::CreateTask>("create_task"),
    Entry::coroutine::<task_group::Enter>("TaskGroup.__aenter__"),
    Entry::coroutine::<task_group::Exit<false>>("TaskGroup.__aexit__"),
    Entry::coroutine::<task_group::Exit<true>>("TaskGroup.__aexit__, suppressing"),
    Entry::method::<task_group::CreateTask>("TaskGroup.create_task"),
    Entry::told::<task_group::OnTaskDone>("TaskGroup._on_task_done"),
    Entry::coroutine::<wait::Wait>("wait"),
    Entry::coroutine::<wait_for::WaitFor>("wait_for"),
    Entry::method::<shield::Shield<false>>("shield"),
    Entry::method::<shield::Shield<true>>("shield, retrieving"),
    Entry::variadic::<gather::Gather>("gather"),
    Entry::coroutine::<timeout::Enter>("Timeout.__aenter__"),
    Entry::coroutine::<timeout::Exit>("Timeout.__aexit__"),
    Entry::method::<timeout::After>("timeout"),
    Entry::method::<timeout::At>("timeout_at"),
    Entry::coroutine::<reading::Read>("StreamReader.read"),
    Entry::coroutine::<reading::ReadExactly>("StreamReader.readexactly"),
    Entry::coroutine::<messages::ReadLine>("StreamReader.readline"),
    Entry::coroutine::<messages::ReadUntil>("StreamReader.readuntil"),
    Entry::coroutine::<messages::Next>("StreamReader.__anext__"),
    Entry::method::<feeding::AtEof>("StreamReader.at_eof"),
    Entry::method::<feeding::Exception>("StreamReader.exception"),
    Entry::method::<feeding::FeedData>("StreamReader.feed_data"),
    Entry::method::<feeding::FeedEof>("StreamReader.feed_eof"),
    Entry::method::<feeding::SetException>("StreamReader.set_exception"),
    Entry::method::<feeding::DataReceived>("StreamReaderProtocol.data_received"),
    Entry::method::<writing::Write>("StreamWriter.write"),
    Entry::coroutine::<writing::Drain>("StreamWriter.drain"),
    Entry::coroutine::<writing::DrainHelper>("StreamReaderProtocol._drain_helper"),
    Entry::method::<transport::Write>("SslTransport.write"),
    Entry::method::<transport::WriteLines>("SslTransport.writelines"),
    Entry::coroutine::<Trying<sockets::Recv>>("EventLoop.sock_recv"),
    Entry::coroutine::<Trying<sockets::RecvInto>>("EventLoop.sock_recv_into"),
    Entry::coroutine::<Trying<sockets::RecvFrom>>("EventLoop.sock_recvfrom"),
    Entry::coroutine::<Trying<sockets::SendAll>>("EventLoop.sock_sendall"),
    Entry::coroutine::<Trying<sockets::RecvFromInto>>("EventLoop.sock_recvfrom_into"),
    Entry::coroutine::<Trying<sockets::SendTo>>("EventLoop.sock_sendto"),
    Entry::coroutine::<sockets::Connect>("EventLoop.sock_connect"),
    Entry::coroutine::<Trying<sockets::Accept>>("EventLoop.sock_accept"),
];
