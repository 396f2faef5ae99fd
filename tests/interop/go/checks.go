// What a Go service asks of blobcast, checked against a real broker. `../drive.py` sets the environment.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	blobcast "interop.example/blobcast/gen/blobcast/v1"
)

const (
	checkTime = 60 * time.Second // no check takes longer
	burst     = 60
	crashAt   = 20
)

type (
	acknowledged struct {
		EventID string `json:"event_id"`
		TaskID  string `json:"task_id"`
	}
	observed struct {
		EventID string `json:"event_id"`
		Cursor  string `json:"cursor"`
		TaskID  string `json:"task_id"`
	}
	// What one check posted and what one subscription saw of it: a line for the checker.
	history struct {
		Acknowledged []acknowledged `json:"acknowledged"`
		Observed     []observed     `json:"observed"`
	}
)

// Plays the vendor: repeats the callback until it is answered 200.
func (h *history) post(ctx context.Context, product, taskID string) error {
	body, err := json.Marshal(map[string]string{
		"generation_id": taskID, "status": "completed", "video_url": "https://cdn.example/" + taskID + ".mp4",
	})
	if err != nil {
		return err
	}
	for {
		eventID, err := postOnce(ctx, product, body)
		if err == nil {
			h.Acknowledged = append(h.Acknowledged, acknowledged{eventID, taskID})
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

func postOnce(ctx context.Context, product string, body []byte) (eventID string, err error) {
	url := os.Getenv("BLOBCAST_INGEST") + "/webhook/" + product
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answered %s", response.Status)
	}
	var answer struct {
		EventID string `json:"event_id"`
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.EventID, err
}

func (h *history) saw(event *blobcast.Event) {
	h.Observed = append(h.Observed, observed{event.EventId, event.Cursor, event.TaskId})
}

func (h *history) check() error {
	same := slices.EqualFunc(h.Acknowledged, h.Observed, func(a acknowledged, o observed) bool {
		return a.EventID == o.EventID
	})
	if !same {
		return fmt.Errorf("acknowledged %v, observed %v", h.Acknowledged, h.Observed)
	}
	file, err := os.OpenFile(os.Getenv("INTEROP_HISTORY"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(file).Encode(h), file.Close())
}

func subscribeBeforeTheCallback(ctx context.Context, client blobcast.EventServiceClient) error {
	var history history
	stream, err := client.Subscribe(ctx, &blobcast.SubscribeRequest{
		Filter: &blobcast.Filter{
			TaskIds:  []string{"before-1"},
			Statuses: []blobcast.TaskStatus{blobcast.TaskStatus_TASK_STATUS_COMPLETED, blobcast.TaskStatus_TASK_STATUS_OVERDUE},
		},
		UntilTerminal: true,
	})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return history.check()
		}
		if err != nil {
			return err
		}
		switch content := response.Content.(type) {
		case *blobcast.SubscribeResponse_CaughtUp:
			if err := history.post(ctx, "veo", "before-1"); err != nil {
				return err
			}
		case *blobcast.SubscribeResponse_Event:
			event := content.Event
			history.saw(event)
			done := event.Status == blobcast.TaskStatus_TASK_STATUS_COMPLETED && event.Terminal && event.Overdue == nil
			if event.Product != "veo" || !done || event.Outputs[0].Url != "https://cdn.example/before-1.mp4" {
				return fmt.Errorf("unexpected event %v", event)
			}
		}
	}
}

func subscribeAfterTheCallback(ctx context.Context, client blobcast.EventServiceClient) error {
	var history history
	if err := history.post(ctx, "veo", "after-1"); err != nil {
		return err
	}
	request := &blobcast.SubscribeRequest{
		Filter:        &blobcast.Filter{TaskIds: []string{"after-1"}},
		UntilTerminal: true,
	}
	for event, err := range Follow(ctx, []blobcast.EventServiceClient{client}, request) {
		if err != nil {
			return err
		}
		history.saw(event)
	}
	return history.check()
}

func subscribeByProduct(ctx context.Context, client blobcast.EventServiceClient) error {
	var ours, others history
	stream, err := client.Subscribe(ctx, &blobcast.SubscribeRequest{
		Filter: &blobcast.Filter{Products: []string{"sora"}},
	})
	if err != nil {
		return err
	}
	for len(ours.Observed) < 3 {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		if response.GetCaughtUp() != nil {
			for number := range 3 {
				err := errors.Join(
					ours.post(ctx, "sora", fmt.Sprintf("product-%d", number)),
					others.post(ctx, "seedance", fmt.Sprintf("other-%d", number)),
				)
				if err != nil {
					return err
				}
			}
		}
		if event := response.GetEvent(); event != nil {
			ours.saw(event)
		}
	}
	return ours.check()
}

func waitDone(ctx context.Context, client blobcast.EventServiceClient) error {
	var history history
	posted := make(chan error, 1)
	go func() { posted <- history.post(ctx, "veo", "wait-1") }()
	for range 2 { // before the callback, then after it
		response, err := client.WaitTask(ctx, &blobcast.WaitTaskRequest{
			TaskId:  "wait-1",
			Product: "veo",
			Timeout: durationpb.New(30 * time.Second),
		})
		if err != nil {
			return err
		}
		if !response.Done || response.Event.GetTaskId() != "wait-1" {
			return fmt.Errorf("unexpected answer %v", response)
		}
	}
	return <-posted
}

func waitTimedOut(ctx context.Context, client blobcast.EventServiceClient) error {
	response, err := client.WaitTask(ctx, &blobcast.WaitTaskRequest{
		TaskId:  "never",
		Timeout: durationpb.New(200 * time.Millisecond),
	})
	if err != nil {
		return err
	}
	if response.Done || response.Event != nil {
		return fmt.Errorf("unexpected answer %v", response)
	}
	return nil
}

func errorReason(ctx context.Context, client blobcast.EventServiceClient) error {
	err := refused(ctx, client, "not a cursor", codes.InvalidArgument, "INVALID_REQUEST")
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok && bad.FieldViolations[0].Field == "after_cursor" {
			return nil
		}
	}
	return fmt.Errorf("no word about after_cursor: %w", err)
}

// One subscription across an outage that callbacks race: each event that was answered 200 comes, once, in order.
// It goes round the nodes, or the one client if there are none.
func resume(product, how string, nodes ...blobcast.EventServiceClient) check {
	return func(ctx context.Context, client blobcast.EventServiceClient) error {
		if len(nodes) == 0 {
			nodes = []blobcast.EventServiceClient{client}
		}
		var history history
		burst := func() error {
			outage := make(chan error, 1)
			for number := range burst {
				if number == crashAt {
					go func() { outage <- control(ctx, how) }()
				}
				if err := history.post(ctx, product, fmt.Sprintf("%s-%d", product, number)); err != nil {
					return err
				}
			}
			return errors.Join(<-outage, history.post(ctx, product, product+"-last"))
		}

		if err := history.post(ctx, product, product+"-first"); err != nil {
			return err
		}
		request := &blobcast.SubscribeRequest{
			Filter:     &blobcast.Filter{Products: []string{product}},
			Start:      &blobcast.SubscribeRequest_Position{Position: blobcast.StartPosition_START_POSITION_EARLIEST},
			ClientName: "interop-go",
		}
		posted := make(chan error, 1)
		for event, err := range Follow(ctx, nodes, request) {
			if err != nil {
				return err
			}
			history.saw(event)
			if event.TaskId == product+"-first" {
				go func() { posted <- burst() }()
			}
			if event.TaskId == product+"-last" {
				break
			}
		}
		if err := <-posted; err != nil {
			return err
		}
		return history.check()
	}
}

func anotherLog(ctx context.Context, client blobcast.EventServiceClient) error {
	old, err := client.GetLogInfo(ctx, &blobcast.GetLogInfoRequest{})
	if err != nil {
		return err
	}
	if err := control(ctx, "replace"); err != nil {
		return err
	}
	err = refused(ctx, client, old.Head, codes.FailedPrecondition, "EPOCH_MISMATCH")
	if Reason(err) == "EPOCH_MISMATCH" {
		return nil
	}
	return err
}

// The error that a subscription behind this cursor ends with, if it is the expected one.
func refused(
	ctx context.Context, client blobcast.EventServiceClient, cursor string, code codes.Code, reason string,
) error {
	request := &blobcast.SubscribeRequest{Start: &blobcast.SubscribeRequest_AfterCursor{AfterCursor: cursor}}
	for _, err := range Follow(ctx, []blobcast.EventServiceClient{client}, request) {
		if status.Code(err) == code && Reason(err) == reason {
			return err
		}
		return fmt.Errorf("unexpected end: %v", err)
	}
	return errors.New("completed")
}

func control(ctx context.Context, what string) error {
	url := os.Getenv("INTEROP_CONTROL") + "/" + what
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

type check func(context.Context, blobcast.EventServiceClient) error

// A client for each of the addresses, which have commas between them.
func connect(addresses string) ([]blobcast.EventServiceClient, error) {
	options := append(dialOptions, grpc.WithTransportCredentials(insecure.NewCredentials()))
	var clients []blobcast.EventServiceClient
	for address := range strings.SplitSeq(addresses, ",") {
		connection, err := grpc.NewClient(address, options...)
		if err != nil {
			return nil, err
		}
		clients = append(clients, blobcast.NewEventServiceClient(connection)) // connected until the process ends
	}
	return clients, nil
}

func main() {
	clients, err := connect(os.Getenv("BLOBCAST_GRPC"))
	if err != nil {
		fmt.Println("not ok connect:", err)
		os.Exit(1)
	}
	if slices.Equal(os.Args[1:], []string{"print"}) {
		if err := printEvents(context.Background(), clients); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nodes, err := connect(os.Getenv("INTEROP_NODES"))
	if err != nil {
		fmt.Println("not ok connect:", err)
		os.Exit(1)
	}
	checks := []struct {
		name string
		run  check
	}{
		{"subscribe by task before its callback", subscribeBeforeTheCallback},
		{"subscribe by task after its callback", subscribeAfterTheCallback},
		{"subscribe by product", subscribeByProduct},
		{"wait for a task", waitDone},
		{"wait for a task in vain", waitTimedOut},
		{"read an error's reason", errorReason},
		{"resume after kill -9", resume("kling", "crash")},
		{"resume after a graceful restart", resume("gemini", "restart")},
		{"resume at the next address", resume("hailuo", "cut", nodes...)},
		{"a cursor of another log is refused", anotherLog},
	}
	for _, check := range checks {
		ctx, cancel := context.WithTimeout(context.Background(), checkTime)
		err := check.run(ctx, clients[0])
		cancel()
		if err != nil {
			fmt.Printf("not ok %s\n%v\n", check.name, err)
			os.Exit(1)
		}
		fmt.Println("ok", check.name)
	}
}
