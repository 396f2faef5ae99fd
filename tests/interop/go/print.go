package main

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blobcast "interop.example/blobcast/gen/blobcast/v1"
)

// Prints the events of a product from the oldest on, a JSON object a line, for as long as it takes. `../silence` cuts it off.
func printEvents(ctx context.Context, clients []blobcast.EventServiceClient) error {
	interval, err := time.ParseDuration(os.Getenv("INTEROP_HEARTBEAT") + "s")
	if err != nil {
		return err
	}
	request := &blobcast.SubscribeRequest{
		Filter:            &blobcast.Filter{Products: []string{"veo"}},
		Start:             &blobcast.SubscribeRequest_Position{Position: blobcast.StartPosition_START_POSITION_EARLIEST},
		HeartbeatInterval: durationpb.New(interval),
	}
	lines := json.NewEncoder(os.Stdout)
	for event, err := range Follow(ctx, clients, request) {
		if err != nil {
			return err
		}
		if err := lines.Encode(observed{event.EventId, event.Cursor, event.TaskId}); err != nil {
			return err
		}
	}
	return nil
}
