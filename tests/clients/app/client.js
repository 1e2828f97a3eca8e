// The client without React.
export { Oyez } from 'oyez';
