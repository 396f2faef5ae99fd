package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	blobcast "interop.example/blobcast/gen/blobcast/v1"
)

const (
	heartbeat = 15 * time.Second       // a quiet stream says something this often, unless it tells otherwise
	pauseMin  = 100 * time.Millisecond // before the first try to reconnect
	pauseMax  = 10 * time.Second       // before each after many failures
)

var dialOptions = []grpc.DialOption{
	// Ask a quiet connection whether it still works, and give it so long to answer.
	grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	// gRPC's own default is two minutes.
	grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
		MinConnectTimeout: 10 * time.Second,
	}),
}

var errSilent = errors.New("nothing has come for three heartbeats")

// Follow yields every matching event, in order, until the broker says `completed`, for as long as it takes: across broken
// connections, silent ones, and restarts of the broker.
//
// There is a client for each node of a cluster, or one alone. When the stream breaks, it continues behind the last cursor at
// the next node, where the cursor is as good, and logs why. Your own restarts are yours: store the event's cursor once you have
// handled the event, and begin with it as AfterCursor. What trying again cannot help, for example OUT_OF_RANGE
// `CURSOR_EXPIRED`, comes as the last pair's error.
func Follow(
	ctx context.Context, clients []blobcast.EventServiceClient, request *blobcast.SubscribeRequest,
) iter.Seq2[*blobcast.Event, error] {
	return func(yield func(*blobcast.Event, error) bool) {
		request := proto.CloneOf(request)
		for failures, node := 0, 0; ; failures, node = failures+1, (node+1)%len(clients) {
			var broken error
			for response, err := range messages(ctx, clients[node], request) {
				if err != nil {
					broken = err
					break
				}
				if response.GetCompleted() != nil {
					return
				}
				if event := response.GetEvent(); event != nil && !yield(event, nil) {
					return
				}
				isGreeting := response.GetSubscribed() != nil
				if cursor := cursorOf(response); cursor != "" && (!isGreeting || startsAtHead(request)) {
					request.Start = &blobcast.SubscribeRequest_AfterCursor{AfterCursor: cursor}
				}
				// Who greets and hangs up is still failing.
				if !isGreeting && response.GetGoingAway() == nil {
					failures = 0
				}
			}
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !Passes(broken) {
				yield(nil, broken)
				return
			}
			slog.Warn("the stream broke, reconnecting", "error", broken)
			pause := max(min(pauseMin<<min(failures, 10), pauseMax), retryDelay(broken))
			select {
			case <-time.After(pause + rand.N(pause/2)):
			case <-ctx.Done():
			}
		}
	}
}

// The messages of one stream, and as the last pair the error that it ended with. It is cancelled when three heartbeats are
// missing; the time you take for a message does not count. Keepalive alone is not enough: a proxy answers it for a broker
// that is gone. Only messages prove the whole path.
func messages(
	ctx context.Context, client blobcast.EventServiceClient, request *blobcast.SubscribeRequest,
) iter.Seq2[*blobcast.SubscribeResponse, error] {
	return func(yield func(*blobcast.SubscribeResponse, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		silenceMax := 3 * heartbeat
		watchdog := time.AfterFunc(silenceMax, func() { cancel(errSilent) })
		defer watchdog.Stop()

		stream, err := client.Subscribe(ctx, request)
		for err == nil {
			var response *blobcast.SubscribeResponse
			if response, err = stream.Recv(); err != nil {
				break
			}
			watchdog.Stop()
			if interval := response.GetSubscribed().GetLimits().GetHeartbeatInterval(); interval != nil {
				silenceMax = 3 * interval.AsDuration()
			}
			if !yield(response, nil) {
				return
			}
			watchdog.Reset(silenceMax)
		}
		if context.Cause(ctx) == errSilent {
			err = errSilent
		}
		yield(nil, err)
	}
}

// Whether the place where the stream starts has to be kept: later the head is another one. Any other request is repeated as it
// was until something was sent: retention may pass the place where it started.
func startsAtHead(request *blobcast.SubscribeRequest) bool {
	switch start := request.Start.(type) {
	case nil:
		return len(request.GetFilter().GetTaskIds()) == 0
	case *blobcast.SubscribeRequest_Position:
		return start.Position == blobcast.StartPosition_START_POSITION_LATEST
	}
	return false
}

// What to continue behind after this message.
func cursorOf(response *blobcast.SubscribeResponse) string {
	switch content := response.Content.(type) {
	case *blobcast.SubscribeResponse_Subscribed:
		return content.Subscribed.Cursor
	case *blobcast.SubscribeResponse_Event:
		return content.Event.Cursor
	case *blobcast.SubscribeResponse_CaughtUp:
		return content.CaughtUp.Cursor
	case *blobcast.SubscribeResponse_FellBehind:
		return content.FellBehind.Cursor
	case *blobcast.SubscribeResponse_Progress:
		return content.Progress.Cursor
	case *blobcast.SubscribeResponse_Gap:
		return content.Gap.Through
	case *blobcast.SubscribeResponse_GoingAway:
		return content.GoingAway.Cursor
	}
	return ""
}

// Passes tells whether trying again can help. Decided by who said it: an error without a reason of blobcast's came from
// something in between, a proxy or the network, whatever its code. With one, the broker says that it is not there now
// (UNAVAILABLE), or when to come back.
func Passes(err error) bool {
	return Reason(err) == "" || status.Code(err) == codes.Unavailable || retryDelay(err) > 0
}

// Reason is what went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`; empty if no broker said it.
func Reason(err error) string {
	if info := detail[*errdetails.ErrorInfo](err); info.GetDomain() == "blobcast" {
		return info.GetReason()
	}
	return ""
}

// The time after which the broker asks to try again; 0 if it does not.
func retryDelay(err error) time.Duration {
	return detail[*errdetails.RetryInfo](err).GetRetryDelay().AsDuration()
}

// The error's detail of this type; the zero value if it has none.
func detail[T any](err error) (found T) {
	for _, detail := range status.Convert(err).Details() {
		if detail, ok := detail.(T); ok {
			return detail
		}
	}
	return found
}
