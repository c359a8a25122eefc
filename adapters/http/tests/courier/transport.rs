use std::time::{Duration, Instant};

use expediter_types::AttemptClass;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn refused_is_before_the_request() {
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let answer = once(merchant(&format!("http://{address}/"))).await;
    assert_eq!(answer.class, AttemptClass::Retry);
    assert_eq!(
        answer.detail,
        format!("connect to {address}: connection refused (before the request was sent)")
    );
    assert_eq!(
        (answer.status, answer.retry_after, answer.excerpt.len()),
        (None, None, 0)
    );
}

#[tokio::test]
async fn a_name_without_address_is_before_the_request() {
    let answer = once(merchant("http://no-such-host.invalid/")).await;
    // Where the tests run without any resolver, it is our own fault.
    assert!(
        matches!(answer.class, AttemptClass::Retry | AttemptClass::Local),
        "{answer:?}"
    );
    assert!(
        answer.detail.contains("no-such-host.invalid"),
        "{}",
        answer.detail
    );
}

#[tokio::test]
async fn a_host_that_takes_no_connection_is_before_the_request() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Fills the queue of connections: the kernel ignores further ones.
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) =
        timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        waiting.push(stream);
        assert!(waiting.len() < 64, "the queue does not fill");
    }
    let mut options = options();
    options.connect_timeout = Duration::from_millis(300);
    let courier = expediter_http::HttpCourier::new(options).unwrap();
    let merchant = merchant(&format!("http://{address}/")).shared();
    let answer = attempt(&courier, &merchant, "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry, "{answer:?}");
    assert!(
        answer.took < Duration::from_millis(1_500),
        "{:?}",
        answer.took
    );
    // The attempt's own time may be over before the connect timeout is.
    let mut brief = (*merchant).clone();
    brief.adapter.timeout = Duration::from_millis(100);
    let answer = attempt(&courier, &brief.shared(), "o-1").await;
    assert_eq!(answer.class, AttemptClass::Retry);
    assert!(
        answer.detail.contains("nothing within 100ms (before"),
        "{}",
        answer.detail
    );
}

#[tokio::test]
async fn a_server_that_never_accepts_may_have_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut merchant = merchant(&format!("http://{}/", listener.local_addr().unwrap()));
    merchant.adapter.timeout = Duration::from_millis(300);
    let answer = once(merchant).await;
    assert_eq!(answer.class, AttemptClass::Ambiguous);
    assert!(
        answer
            .detail
            .ends_with("nothing within 300ms (the request may have been received)")
    );
    assert!(answer.took >= Duration::from_millis(300) && answer.took < Duration::from_secs(2));
}

#[tokio::test]
async fn closing_or_resetting_after_the_request_is_ambiguous() {
    let closing = Server::start(|mut stream, got| async move {
        let request = read_request(&mut stream).await;
        got.lock().unwrap().extend(request);
    })
    .await;
    let resetting = Server::start(|mut stream, got| async move {
        let request = read_request(&mut stream).await;
        got.lock().unwrap().extend(request);
        stream.set_zero_linger().unwrap();
    })
    .await;
    let halfway = Server::start(|mut stream, got| async move {
        let request = read_request(&mut stream).await;
        got.lock().unwrap().extend(request);
        write(&mut stream, "HTTP/1.1 200 OK\r\nconte").await;
    })
    .await;
    for server in [closing, resetting, halfway] {
        let answer = once(native(&server.url())).await;
        assert_eq!(answer.class, AttemptClass::Ambiguous, "{answer:?}");
        assert!(
            answer.detail.contains("may have been received"),
            "{}",
            answer.detail
        );
        assert_eq!(server.requests().len(), 1, "sent once");
    }
}

#[tokio::test]
async fn closing_before_reading_is_never_a_delivery_and_never_repeated() {
    let server = Server::start(|stream, _| async move { drop(stream) }).await;
    for _ in 0..20 {
        let answer = once(merchant(&server.url())).await;
        assert!(
            matches!(answer.class, AttemptClass::Retry | AttemptClass::Ambiguous),
            "{answer:?}"
        );
    }
    assert_eq!(server.connections(), 20);
}

#[tokio::test]
async fn garbage_instead_of_a_response_is_ambiguous() {
    for garbage in [
        "hello\r\n\r\n",
        "\0\0\0\0",
        "HTTP/1.1 abc\r\n\r\n",
        "SSH-2.0-OpenSSH_9\r\n",
    ] {
        let server = Server::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            write(&mut stream, garbage).await;
        })
        .await;
        let answer = once(merchant(&server.url())).await;
        assert_eq!(
            answer.class,
            AttemptClass::Ambiguous,
            "{garbage:?}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_response_that_trickles_ends_with_the_timeout() {
    let server = Server::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        for byte in OK.chars() {
            write(&mut stream, &byte.to_string()).await;
            sleep(Duration::from_millis(40)).await;
        }
    })
    .await;
    let mut merchant = merchant(&server.url());
    merchant.adapter.timeout = Duration::from_millis(300);
    let answer = once(merchant).await;
    assert_eq!(
        (answer.class, answer.status),
        (AttemptClass::Ambiguous, None)
    );
    assert!(answer.took < Duration::from_millis(900));
}

#[tokio::test]
async fn the_status_decides_though_the_body_stalls() {
    let stalling = |status: u16| {
        Server::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            write(
                &mut stream,
                &format!("HTTP/1.1 {status} X\r\ncontent-length: 99\r\n\r\npart"),
            )
            .await;
            sleep(Duration::from_secs(60)).await;
        })
    };
    let server = stalling(200).await;
    let answer = once(merchant(&server.url())).await;
    assert_eq!(
        (answer.class, answer.status),
        (AttemptClass::Delivered, Some(200))
    );
    assert!(
        answer.took < Duration::from_millis(1_800),
        "{:?}",
        answer.took
    );
    assert!(answer.excerpt.is_empty());

    let server = stalling(422).await;
    let mut merchant = merchant(&server.url());
    merchant.adapter.timeout = Duration::from_millis(400);
    let answer = once(merchant).await;
    assert_eq!(
        (answer.class, answer.status),
        (AttemptClass::Invalid, Some(422))
    );
    assert_eq!(&answer.excerpt[..], b"part");
}

#[tokio::test]
async fn an_endless_body_is_not_read_to_its_end() {
    for (status, class, kept) in [
        (200, AttemptClass::Delivered, 0),
        (500, AttemptClass::Ambiguous, 2048),
    ] {
        let server = Server::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            write(
                &mut stream,
                &format!("HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n\r\n"),
            )
            .await;
            let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        })
        .await;
        let answer = once(merchant(&server.url())).await;
        assert_eq!((answer.class, answer.status), (class, Some(status)));
        assert_eq!(answer.excerpt.len(), kept);
        assert!(
            answer.took < Duration::from_millis(1_800),
            "{:?}",
            answer.took
        );
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::answering(OK).await;
    let (courier, merchant) = (courier(), native(&server.url()).shared());
    for number in 0..20 {
        let answer = attempt(&courier, &merchant, &format!("o-{number}")).await;
        assert_eq!(answer.class, AttemptClass::Delivered, "{answer:?}");
        assert_eq!(
            (answer.detail.as_str(), answer.status),
            ("HTTP 200 OK", Some(200))
        );
    }
    assert_eq!((server.connections(), server.requests().len()), (1, 20));
}

#[tokio::test]
async fn a_pooled_connection_that_closes_on_the_request_is_ambiguous() {
    let server = Server::start(|mut stream, got| async move {
        let request = read_request(&mut stream).await;
        got.lock().unwrap().extend(request);
        write(&mut stream, OK).await;
        let request = read_request(&mut stream).await;
        got.lock().unwrap().extend(request);
    })
    .await;
    let (courier, merchant) = (courier(), native(&server.url()).shared());
    assert_eq!(
        attempt(&courier, &merchant, "o-1").await.class,
        AttemptClass::Delivered
    );
    let answer = attempt(&courier, &merchant, "o-2").await;
    assert_eq!(answer.class, AttemptClass::Ambiguous, "{answer:?}");
    sleep(Duration::from_millis(50)).await;
    assert_eq!(
        (server.connections(), server.requests().len()),
        (1, 2),
        "not sent again"
    );
}

/// The server closes each connection right after its answer: requests meet connections in every
/// state of dying. Whatever comes of that, a request that was read is never called unsent.
#[tokio::test]
async fn what_the_server_has_read_is_never_called_unsent() {
    let server = Server::start(|mut stream, got| async move {
        let Some(request) = read_request(&mut stream).await else {
            return;
        };
        got.lock().unwrap().push(request);
        write(&mut stream, OK).await;
        let mut more = [0; 1];
        let extra = timeout(Duration::from_micros(300), stream.read(&mut more)).await;
        if matches!(extra, Ok(Ok(1))) {
            // Began to read another one, and dies.
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let (courier, merchant) = (courier(), native(&server.url()).shared());
    for number in 0..300 {
        let id = format!("o-{number}");
        let answer = attempt(&courier, &merchant, &id).await;
        let read = server
            .requests()
            .iter()
            .filter(|r| r.header("expediter-order-id") == Some(&id))
            .count();
        match answer.class {
            AttemptClass::Delivered => assert_eq!(read, 1, "{id}"),
            AttemptClass::Ambiguous => assert!(read <= 1, "{id}"),
            AttemptClass::Retry => assert_eq!(read, 0, "{id}: {answer:?}"),
            class => panic!("{id}: {class}"),
        }
        sleep(Duration::from_micros(number % 7 * 100)).await;
    }
}

#[tokio::test]
async fn idle_connections_to_unrepeatable_merchants_go_soon() {
    let server = Server::answering(OK).await;
    let mut options = options();
    options.pool_idle_unrepeatable = Duration::from_millis(100);
    let courier = expediter_http::HttpCourier::new(options).unwrap();
    let (native, merchant) = (
        native(&server.url()).shared(),
        merchant(&server.url()).shared(),
    );
    for (merchant, connections) in [(native, 1), (merchant, 3)] {
        for _ in 0..2 {
            assert_eq!(
                attempt(&courier, &merchant, "o").await.class,
                AttemptClass::Delivered
            );
            sleep(Duration::from_millis(250)).await;
        }
        assert_eq!(server.connections(), connections);
    }
}

#[tokio::test]
async fn informational_responses_are_passed_over() {
    let server = Server::answering(format!(
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n{OK}"
    ))
    .await;
    assert_eq!(
        once(merchant(&server.url())).await.class,
        AttemptClass::Delivered
    );
}

#[tokio::test]
async fn attempts_run_side_by_side() {
    let server = Server::start(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            sleep(Duration::from_millis(200)).await;
            write(&mut stream, OK).await;
        }
    })
    .await;
    let (courier, merchant) = (courier(), merchant(&server.url()).shared());
    let began = Instant::now();
    let answers = (0..50).map(|_| attempt(&courier, &merchant, "o"));
    for answer in futures::future::join_all(answers).await {
        assert_eq!(answer.class, AttemptClass::Delivered, "{answer:?}");
    }
    assert!(
        began.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        began.elapsed()
    );
}
