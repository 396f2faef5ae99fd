package main

import (
	"context"
	"iter"
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

var dialOptions = []grpc.DialOption{
	// Notice a connection that died without a word.
	grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second}),
	// gRPC's own default is two minutes.
	grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
	}),
}

// Follow yields every matching event, in order, until the broker says `completed`, for as long as it takes, across
// broken connections and restarts of the broker.
//
// When the stream breaks, it continues behind the last cursor. Your own restarts are yours: store the event's cursor
// once you have handled the event, and begin with it as AfterCursor. What trying again cannot help, for example
// OUT_OF_RANGE `CURSOR_EXPIRED`, comes as the last pair's error.
func Follow(
	ctx context.Context, client blobcast.EventServiceClient, request *blobcast.SubscribeRequest,
) iter.Seq2[*blobcast.Event, error] {
	return func(yield func(*blobcast.Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		request := proto.CloneOf(request)
		for failures := 0; ; failures++ {
			stream, err := client.Subscribe(ctx, request)
			for err == nil {
				var response *blobcast.SubscribeResponse
				if response, err = stream.Recv(); err != nil {
					break
				}
				failures = 0
				if response.GetCompleted() != nil {
					return
				}
				if event := response.GetEvent(); event != nil && !yield(event, nil) {
					return
				}
				if cursor := cursorOf(response); cursor != "" {
					request.Start = &blobcast.SubscribeRequest_AfterCursor{AfterCursor: cursor}
				}
			}
			if status.Code(err) != codes.Unavailable {
				yield(nil, err)
				return
			}
			pause := (100*time.Millisecond + rand.N(100*time.Millisecond)) << min(failures, 5)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
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
		return content.Gap.To
	case *blobcast.SubscribeResponse_GoingAway:
		return content.GoingAway.Cursor
	}
	return ""
}

// Reason is what went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}
