// Clients of gorilla/websocket for deflate_scenario.py: any number, driven over standard input and output as those of
// node_peers.js are.
//
// gorilla offers compression without context in either direction, and rejects a response that does not agree to both.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

type command struct {
	Do        string
	Client    string
	URL       string
	Protocols []string
	Text      string
}

type event map[string]any

var output struct {
	sync.Mutex
	*json.Encoder
}

func emit(client, what string, fields event) {
	fields["client"], fields["event"] = client, what
	output.Lock()
	defer output.Unlock()
	if err := output.Encode(fields); err != nil {
		log.Fatal(err)
	}
}

// read emits each message of a client, and then its end.
func read(client string, connection *websocket.Conn) {
	for {
		kind, data, err := connection.ReadMessage()
		if err != nil {
			end := &websocket.CloseError{Code: websocket.CloseAbnormalClosure, Text: err.Error()}
			errors.As(err, &end)
			emit(client, "close", event{"code": end.Code, "reason": end.Text})
			return
		}
		text := string(data)
		if kind == websocket.BinaryMessage {
			text = "base64:" + base64.StdEncoding.EncodeToString(data)
		}
		emit(client, "text", event{"text": text})
	}
}

func open(c command) (*websocket.Conn, error) {
	dialer := websocket.Dialer{EnableCompression: true, Subprotocols: c.Protocols}
	connection, response, err := dialer.Dial(c.URL, http.Header{})
	if err != nil {
		return nil, err
	}
	emit(c.Client, "open", event{"extensions": response.Header.Get("Sec-WebSocket-Extensions")})
	go read(c.Client, connection)
	return connection, nil
}

func main() {
	output.Encoder = json.NewEncoder(os.Stdout)
	clients := map[string]*websocket.Conn{}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	// The scenario has ended when its input has: no client may outlive it.
	for lines.Scan() {
		var c command
		err := json.Unmarshal(lines.Bytes(), &c)
		switch {
		case err != nil:
		case c.Do == "read":
			clients[c.Client], err = open(c)
		case c.Do == "write":
			err = clients[c.Client].WriteMessage(websocket.TextMessage, []byte(c.Text))
		default:
			err = fmt.Errorf("unknown command %q", c.Do)
		}
		if err != nil {
			log.Fatalf("gorilla %s: %v", c.Client, err)
		}
	}
}
